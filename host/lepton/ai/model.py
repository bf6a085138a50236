"""A loaded model."""

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import (
    BatchEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    StoppingCriteria,
    StoppingCriteriaList,
    TextIteratorStreamer,
)

from lepton.errors import InputError
from lepton.placement import Report
from lepton.runtime.executor import Executor
from lepton.runtime.forward import DecoderForward


class LeptonModel:
    """A model whose Linear layers run on a device; also a context manager that closes the device.

    ``module`` is the PyTorch model, ``tokenizer`` its tokenizer or None, ``device`` the name of the device.
    """

    def __init__(self, module: nn.Module, tokenizer: PreTrainedTokenizerBase | None, executor: Executor | None) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self._executor = executor
        self._closed = False

    @property
    def device(self) -> str:
        """Name of the device that runs the Linear layers."""
        return self._executor.name if self._executor else "cpu"

    @property
    def host_device(self) -> torch.device:
        """Where PyTorch runs the rest."""
        parameter = next(self.module.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the PyTorch model returns, without gradients.

        Raises :class:`InputError` for token ids outside the vocabulary or more of them than the model has positions.
        """
        self._check_open()
        with torch.no_grad():
            ids = kwargs.get("input_ids", args[0] if args else None)
            if isinstance(ids, Tensor) and not ids.is_floating_point():
                self._check_ids(ids, 0)
            return self.module(*args, **kwargs)

    __call__ = forward

    def explain(self) -> Report:
        """Where every module runs, how much of the work that is, and why modules stay on the host."""
        report = getattr(self.module, "lepton_report", None)
        return report if report is not None else Report(device=self.device, config="", context=0, placements=())

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the quantized model, its tokenizer, and compiled command lists, for :func:`~lepton.ai.load_model`.

        Raises :class:`InputError` for a module that is not from transformers.
        """
        self._check_open()
        if not isinstance(self.module, PreTrainedModel):
            raise InputError(
                f"model {type(self.module).__name__}: must be from transformers to be saved, but is not; save its "
                f"state_dict with PyTorch"
            )
        self.module.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        forward = self.module.forward
        if isinstance(forward, DecoderForward) and (programs := forward.decoder.programs()):
            programs.save(Path(folder))

    def encode(self, prompt: str | Sequence[str], *, chat: bool | None = None) -> BatchEncoding:
        """Token ids and attention mask of one or several prompts, padded on the left.

        ``chat`` wraps each as a user's message in the model's chat template; by default if it has one.
        """
        tokenizer = self._tokenizer()
        prompts: list[Any] = list(prompt) if isinstance(prompt, list | tuple) else [prompt]
        if not prompts or not all(isinstance(p, str) for p in prompts):
            raise InputError(f"prompt: must be a text or several, not {prompt!r}; pass token ids as a tensor")
        if chat and not tokenizer.chat_template:
            raise InputError("prompt: chat=True needs a chat template, but the model has none; leave chat out")
        if tokenizer.chat_template and chat is not False:
            prompts = [
                tokenizer.apply_chat_template(
                    [{"role": "user", "content": p}], add_generation_prompt=True, tokenize=False
                )
                for p in prompts
            ]
        if tokenizer.pad_token is None:
            tokenizer.pad_token = tokenizer.eos_token
        special = not (tokenizer.chat_template and chat is not False)
        return tokenizer(
            prompts, return_tensors="pt", padding=len(prompts) > 1, padding_side="left", add_special_tokens=special
        ).to(self.host_device)

    def generate(
        self,
        prompt: str | Sequence[str] | Tensor,
        max_new_tokens: int = 128,
        *,
        stream: bool = False,
        chat: bool | None = None,
        **kwargs: Any,
    ) -> "str | list[str] | Tensor | TextStream":
        """Continue ``prompt``: text gives text, several texts a list, token ids [B, S] those of transformers.

        ``stream`` gives an iterator of pieces of text instead, for one prompt. ``chat`` is that of :meth:`encode`.
        Everything else goes to ``generate`` of transformers (``do_sample``, ``num_beams``, …).

        Raises :class:`InputError` if the prompt and the new tokens are more than the model has positions.
        """
        self._check_open()
        if not isinstance(self.module, PreTrainedModel) or not self.module.can_generate():
            raise InputError(f"model {type(self.module).__name__}: must be able to generate, but is not; call forward")
        if not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise InputError(f"max_new_tokens: must be a whole number from 1, not {max_new_tokens!r}")
        if isinstance(prompt, Tensor):
            inputs: dict[str, Any] = {"input_ids": prompt}
        else:
            inputs = dict(self.encode(prompt, chat=chat))
            inputs.pop("token_type_ids", None)
        ids = inputs["input_ids"]
        if ids.ndim != 2 or ids.shape[1] == 0 or ids.is_floating_point():
            raise InputError(f"prompt: must have token ids [B, S], not {ids.dtype}{list(ids.shape)}; give it some text")
        self._check_ids(ids, max_new_tokens)
        generate: Callable[..., Any] = self.module.generate  # type: ignore[reportAssignmentType]
        options = {**inputs, "max_new_tokens": max_new_tokens, **kwargs}
        if stream:
            if ids.shape[0] != 1 or kwargs.get("num_beams", 1) != 1:
                raise InputError("stream: must be one prompt without beams; generate without stream=True")
            return TextStream(generate, self._tokenizer(), options)
        result = generate(**options)
        if isinstance(prompt, Tensor):
            return result
        sequences = getattr(result, "sequences", result)
        texts = self._tokenizer().batch_decode(sequences[:, ids.shape[1] :], skip_special_tokens=True)
        return texts[0] if isinstance(prompt, str) else texts

    def close(self) -> None:
        """Release the device. The model cannot run any more."""
        self._closed = True
        if self._executor is not None:
            self._executor.close()

    def __enter__(self) -> "LeptonModel":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise InputError("model: must have a tokenizer for text, but has none; pass token ids, or tokenizer=")
        return self.tokenizer

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("model: must be open, but is closed; load it again")

    def _check_ids(self, ids: Tensor, new: int) -> None:
        config = getattr(self.module, "config", None)
        if config is None:
            return
        text = config.get_text_config()
        limit = getattr(text, "max_position_embeddings", None)
        if limit is not None and ids.shape[-1] + new > limit:
            more = f" and {new} new ones" if new else ""
            raise InputError(
                f"prompt: tokens{' and new tokens' if new else ''} must be at most {limit} together, "
                f"not {ids.shape[-1]}{more}; shorten it"
            )
        if ids.numel() and not (int(ids.min()) >= 0 and int(ids.max()) < text.vocab_size):
            raise InputError(
                f"prompt: token ids must be 0 to {text.vocab_size - 1}, not {int(ids.min())} to {int(ids.max())}; "
                f"use the model's tokenizer"
            )


class TextStream(Iterator[str]):
    """Pieces of text while they are generated, in a thread that ends with the iteration or :meth:`close`.

    ``token_ids`` are the new tokens so far.
    """

    def __init__(
        self, generate: Callable[..., Any], tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]
    ) -> None:
        self.token_ids: list[int] = []
        self._error: BaseException | None = None
        self._stop = threading.Event()
        self._streamer = _Streamer(tokenizer, self.token_ids)
        criteria = StoppingCriteriaList([*options.pop("stopping_criteria", []), _StopOn(self._stop)])
        options |= {"streamer": self._streamer, "stopping_criteria": criteria}
        self._thread = threading.Thread(target=self._run, args=(generate, options), name="lepton-generate", daemon=True)
        self._thread.start()

    def _run(self, generate: Callable[..., Any], options: dict[str, Any]) -> None:
        try:
            generate(**options)
        except BaseException as error:  # handed to the iterating thread
            self._error = error
            self._streamer.end()

    def __next__(self) -> str:
        try:
            return next(self._streamer)
        except StopIteration:
            self._thread.join()
            if self._error is not None:
                error, self._error = self._error, None
                raise error from None
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the generation early."""
        self._stop.set()
        self._thread.join()

    def __del__(self) -> None:
        self._stop.set()


class _Streamer(TextIteratorStreamer):
    """Also records the new tokens."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, token_ids: list[int]) -> None:
        super().__init__(tokenizer, skip_prompt=True, skip_special_tokens=True)
        self._token_ids = token_ids

    def put(self, value: Tensor) -> None:
        if not self.next_tokens_are_prompt:
            self._token_ids.extend(value.flatten().tolist())
        super().put(value)


class _StopOn(StoppingCriteria):
    """Stops generating when an event is set."""

    def __init__(self, event: threading.Event) -> None:
        self._event = event

    def __call__(  # type: ignore[reportIncompatibleMethodOverride]
        self, input_ids: Tensor, scores: Tensor, **kwargs: Any
    ) -> Tensor:
        return torch.full((input_ids.shape[0],), self._event.is_set(), device=input_ids.device)
