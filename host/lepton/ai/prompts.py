"""From texts to token ids."""

from typing import Any

from transformers import BatchEncoding, PreTrainedTokenizerBase

from lepton.errors import InputError


def encode(tokenizer: PreTrainedTokenizerBase, prompt: Any, *, chat: bool | None, padding_side: str) -> BatchEncoding:
    """Token ids and attention mask of a text, or of several, padded.

    ``chat`` wraps each as a user's message in the chat template of the tokenizer; by default if it has one.

    Raises :class:`InputError` for something else than texts, and for a tokenizer that cannot do what is asked.
    """
    prompts: list[Any] = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
    if not prompts or not all(isinstance(p, str) for p in prompts):
        raise InputError(f"prompt: must be a text or several, not {prompt!r}; pass token ids as a tensor")
    if chat and not tokenizer.chat_template:
        raise InputError("prompt: chat=True needs a chat template, but the model has none; leave chat out")
    chat = bool(tokenizer.chat_template) and chat is not False
    if chat:
        prompts = [_as_message(tokenizer, p) for p in prompts]
    if len(prompts) > 1 and tokenizer.pad_token is None:
        if tokenizer.eos_token is None:
            raise InputError(
                "tokenizer: must have a token for padding to take several prompts, but has neither that nor one for "
                "the end; set tokenizer.pad_token, or pass the prompts one by one"
            )
        tokenizer.pad_token = tokenizer.eos_token
    return tokenizer(
        prompts,
        return_tensors="pt",
        padding=len(prompts) > 1,
        padding_side=padding_side,
        add_special_tokens=not chat,
    )


def _as_message(tokenizer: PreTrainedTokenizerBase, text: str) -> str:
    """``text`` as a user's message in the chat template of the tokenizer."""
    message = [{"role": "user", "content": text}]
    try:
        result = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # templates raise what they like
        raise InputError(
            f"prompt: the model's chat template must take a user's message, but raised {type(error).__name__}: {error}"
            f"; pass chat=False and write the prompt as the model expects it"
        ) from error
    assert isinstance(result, str)
    return result
