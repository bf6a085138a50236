"""What is asked of ``generate`` of transformers, and whether the answer would hold it."""

from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from lepton.errors import InputError

_ONLY_IN_AN_OBJECT = ("output_scores", "output_logits", "output_attentions", "output_hidden_states")
"""What transformers computes, and drops unless it returns an object."""


def setting(module: PreTrainedModel, options: dict[str, Any], name: str) -> Any:
    """An option of ``generate``: the caller's, or that of the generation configuration it uses."""
    configurations = (options.get("generation_config"), module.generation_config)
    values = (options.get(name), *(getattr(configuration, name, None) for configuration in configurations))
    return next((value for value in values if value is not None), None)


def gives_object(module: PreTrainedModel, options: dict[str, Any]) -> bool:
    """Whether transformers returns an object with more in it than sequences."""
    return bool(setting(module, options, "return_dict_in_generate"))


def rows_of_prompt(module: PreTrainedModel, options: dict[str, Any]) -> int:
    """Sequences that are computed together for each prompt: beams, or independent answers."""
    values = (setting(module, options, name) for name in ("num_beams", "num_return_sequences"))
    return max((int(value) for value in values if value is not None), default=1)


def check_generation(module: PreTrainedModel, max_new_tokens: Any, options: dict[str, Any]) -> None:
    """Raise :class:`InputError` for a limit that is none, and for options that would be dropped."""
    if not isinstance(max_new_tokens, int) or isinstance(max_new_tokens, bool) or max_new_tokens < 1:
        raise InputError(f"max_new_tokens: must be a whole number from 1, not {max_new_tokens!r}")
    if options.get("max_length") is not None:
        raise InputError("max_length: must be left out, since max_new_tokens is the limit; pass that")
    if not gives_object(module, options):
        for name in _ONLY_IN_AN_OBJECT:
            if options.get(name):
                raise InputError(f"{name}: must have return_dict_in_generate=True, or it would be lost; pass both")


def check_stream(module: PreTrainedModel, prompt: Any, options: dict[str, Any]) -> None:
    """Raise :class:`InputError` for more than one answer, or more than its text, as a stream."""
    rows = rows_of_prompt(module, options)
    if isinstance(prompt, list | tuple) or (isinstance(prompt, Tensor) and prompt.ndim == 2 and len(prompt) != 1):
        offender = "several prompts"
    elif rows > 1:
        offender = f"{rows} beams or answers"
    elif gives_object(module, options):
        offender = "return_dict_in_generate"
    elif options.get("streamer") is not None:
        offender = "a streamer"
    else:
        return
    raise InputError(f"stream: must be one prompt with one answer, not {offender}; generate without stream=True")
