"""Docstrings as Markdown, for the API pages: roles become links, sections become lists."""

import inspect
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress

import griffe

ERRORS = "lepton.errors"
"""Where every error can be imported from."""

_ROLE = re.compile(r":(?:class|func|meth|mod|attr|data):`(~?)([\w.]+)`")
_SECTION = re.compile(r"^(\w[\w ]*)\n-{3,}\n", re.MULTILINE)


def markdown(text: str, resolve: Callable[[str], str | None] = lambda name: None) -> str:
    """A docstring in Markdown.

    ``resolve`` gives the full path of a name that a role mentions, or None if it has no place on the site.
    """

    def link(role: re.Match[str]) -> str:
        short, name = role.groups()
        label = f"`{name.rpartition('.')[2] if short else name}`"
        path = resolve(name)
        return f"[{label}][{path}]" if path else label

    text = _ROLE.sub(link, inspect.cleandoc(text)).replace("``", "`")
    before, *sections = _SECTION.split(text)
    parts = [before.strip()]
    for title, body in zip(sections[::2], sections[1::2], strict=True):
        entries, _, after = body.partition("\n\n")
        parts += [f"**{title}**", _entries(entries.splitlines()), after.strip()]
    return "\n\n".join(part for part in parts if part)


def _entries(lines: Iterable[str]) -> str:
    """The entries of a section, ``name : what it is`` or a name with indented lines below it, as a list."""
    items: list[str] = []
    for line in lines:
        if line.startswith(" "):
            items[-1] += " " + line.strip()
        else:
            name, _, meaning = line.partition(" : ")
            items.append(f"- `{name.strip()}`: {meaning.strip()}".rstrip())
    return "\n".join(items)


class Docstrings(griffe.Extension):
    """Rewrites the docstrings of a package once all of it is loaded, when names can be resolved."""

    def on_package(self, *, pkg: griffe.Module, loader: griffe.GriffeLoader, **kwargs: object) -> None:
        self._rewrite(pkg, loader)

    def _rewrite(self, owner: griffe.Object, loader: griffe.GriffeLoader) -> None:
        for member in owner.members.values():
            if isinstance(member, griffe.Object):
                self._rewrite(member, loader)
        if owner.docstring is not None:
            owner.docstring.value = markdown(owner.docstring.value, lambda name: _path(owner, name, loader))


def _path(owner: griffe.Object, name: str, loader: griffe.GriffeLoader) -> str | None:
    """The full path of ``name`` in the scope of ``owner``, if the site has it.

    An error that a function raises need not be imported where it is mentioned. A full path that leads nowhere is
    returned as it is: the build tells that there is no such thing.
    """
    found = next((found for path in _candidates(owner, name) if (found := _find(loader, path))), None)
    if found is None:
        return name if name.startswith("lepton") else None
    public = not any(part.startswith("_") for part in found.path.split("."))
    return found.path if public and found.has_docstring else None


def _candidates(owner: griffe.Object, name: str) -> Iterator[str]:
    """Full paths that ``name`` may stand for."""
    if name.startswith("lepton"):
        yield name
        return
    first, *rest = name.split(".")
    with suppress(griffe.NameResolutionError):
        yield ".".join([owner.resolve(first), *rest])
    yield f"{ERRORS}.{name}"


def _find(loader: griffe.GriffeLoader, path: str) -> griffe.Object | None:
    """What lies at a full path of one of the packages."""
    try:
        found = loader.modules_collection.get_member(path)
        found = found.final_target if isinstance(found, griffe.Alias) else found
    except (griffe.AliasResolutionError, KeyError):
        return None
    return found if found.path.startswith("lepton") else None
