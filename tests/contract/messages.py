"""What tests ask of an error's text: that it names the subject and the offender. The other words may change."""

import re


def names(subject: str, offender: object = None) -> str:
    """A pattern for an error that begins with the subject and, if there is one, names the offender behind the rule."""
    pattern = rf"^{re.escape(subject)}\b"
    return pattern if offender is None else rf"{pattern}.* (?:not|but) .*{re.escape(str(offender))}(?!\w)"
