"""A loaded model."""

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NoReturn

import torch
from torch import Tensor, nn
from transformers import BatchEncoding, PreTrainedModel, PreTrainedTokenizerBase

from lepton.ai.generation import check_generation, check_stream, gives_object, rows_of_prompt, setting
from lepton.ai.inputs import check_ids, fits, longest, too_long
from lepton.ai.prompts import encode
from lepton.ai.stream import TextStream, close_streams
from lepton.errors import InputError
from lepton.placement import Offloaded, Report
from lepton.runtime.decoder import DecoderEngine
from lepton.runtime.reference import ReferenceEngine

_IDS_OF_FORWARD = ("input_ids", "decoder_input_ids")


class LeptonModel:
    """A model whose Linear layers run on a device; also a context manager that closes the device.

    ``module`` is the PyTorch model, ``tokenizer`` its tokenizer or None, ``device`` the name of the device. It belongs
    to its device, so it can be neither copied nor pickled.
    """

    def __init__(
        self, module: nn.Module, tokenizer: PreTrainedTokenizerBase | None, offloaded: Offloaded | None
    ) -> None:
        self.module = module
        self.tokenizer = tokenizer
        self.offloaded = offloaded
        """How the module is offloaded, or None if nothing of it is."""
        self._closed = False

    @property
    def device(self) -> str:
        """Name of the device that runs the Linear layers."""
        return self.offloaded.executor.name if self.offloaded else "cpu"

    @property
    def host_device(self) -> torch.device:
        """Where PyTorch runs the rest."""
        parameter = next(self.module.parameters(), None)
        return torch.device("cpu") if parameter is None else parameter.device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the PyTorch model returns, without gradients.

        Raises :class:`InputError` for token ids that are not [B, T], outside the vocabulary, or more than the model has
        positions.
        """
        self._check_open()
        if isinstance(self.module, PreTrainedModel):
            given = {self.module.main_input_name: args[0]} | kwargs if args else kwargs
            for name in _IDS_OF_FORWARD:
                if (ids := given.get(name)) is not None:
                    mask = given.get(name.replace("input_ids", "attention_mask"))
                    self._check_ids(name, ids, mask, decoder=name != "input_ids")
        with torch.no_grad():
            return self.module(*args, **kwargs)

    __call__ = forward

    def explain(self) -> Report:
        """Where every module runs, how much of the work that is, and why modules stay on the host."""
        if self.offloaded is not None:
            return self.offloaded.report.confirmed(self.module)
        return Report(device=self.device, config="", context=0, placements=())

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write the quantized model, its tokenizer, and compiled command lists, for :func:`~lepton.ai.load_model`.

        Raises :class:`InputError` for a module that is not from transformers, and for a ``folder`` that is a file.
        """
        self._check_open()
        if not isinstance(self.module, PreTrainedModel):
            raise InputError(
                f"model {type(self.module).__name__}: must be from transformers to be saved, but is not; save its "
                f"state_dict with PyTorch"
            )
        if Path(folder).exists() and not Path(folder).is_dir():
            raise InputError(f"folder '{folder}': must be a folder or nothing yet, but is a file; choose another")
        self.module.save_pretrained(folder)
        if self.tokenizer is not None:
            self.tokenizer.save_pretrained(folder)
        if self.offloaded is not None and (lists := self.offloaded.command_lists()):
            lists.save(Path(folder))

    def encode(self, prompt: str | Sequence[str], *, chat: bool | None = None) -> BatchEncoding:
        """Token ids and attention mask of one or several prompts.

        Several are padded on the left, where new tokens follow; for the encoder of an encoder-decoder model on the
        right. ``chat`` wraps each as a user's message in the model's chat template; by default if it has one.
        """
        config = getattr(self.module, "config", None)
        side = "right" if getattr(config, "is_encoder_decoder", False) else "left"
        return encode(self._tokenizer(), prompt, chat=chat, padding_side=side).to(self.host_device)

    def generate(
        self,
        prompt: str | Sequence[str] | Tensor,
        max_new_tokens: int = 128,
        *,
        stream: bool = False,
        chat: bool | None = None,
        **kwargs: Any,
    ) -> Any:
        """Continue ``prompt``: text gives text, several texts a list, token ids [B, S] those of transformers.

        More texts than the device has caches for are computed in groups. With ``num_return_sequences`` a text gives a
        list, and several texts one list with the answers to each behind each other. ``stream`` gives a
        :class:`TextStream` instead, for one prompt. ``chat`` is that of :meth:`encode`. Everything else goes to
        ``generate`` of transformers (``do_sample``, ``num_beams``, ``stop_strings``, …); with
        ``return_dict_in_generate`` the result is what it returns, for text as well.

        Raises :class:`InputError` before anything is computed, if the prompt and the new tokens are more than the
        model has positions or the device was loaded with, and for more sequences at a time than there are caches.
        """
        self._check_open()
        module = self.module
        if not isinstance(module, PreTrainedModel) or not module.can_generate():
            raise InputError(f"model {type(module).__name__}: must be able to generate, but is not; call forward")
        check_generation(module, max_new_tokens, kwargs)
        if setting(module, kwargs, "stop_strings") is not None:
            kwargs.setdefault("tokenizer", self._tokenizer())
        if stream:
            check_stream(module, prompt, kwargs)
        batches = self._batches(prompt, chat, rows_of_prompt(module, kwargs), kwargs.get("attention_mask"))
        whole = gives_object(module, kwargs)
        if whole and len(batches) > 1:
            raise InputError(
                f"return_dict_in_generate: must be for prompts that fit the device together, but they are "
                f"{len(batches)} groups; load the model with more sequences=, or generate one group after the other"
            )
        for batch in batches:
            self._check_fits(batch | kwargs, max_new_tokens)
        generate: Callable[..., Any] = module.generate  # type: ignore[reportAssignmentType]
        options = {"max_new_tokens": max_new_tokens, **kwargs}
        if stream:
            return TextStream(generate, self._tokenizer(), {**batches[0], **options}, module)
        results = [generate(**{**batch, **options}) for batch in batches]
        if isinstance(prompt, Tensor) or whole:
            return results[0]
        texts = []
        for batch, result in zip(batches, results, strict=True):
            # The sequences of an encoder-decoder model do not begin with the prompt.
            begin = 0 if module.config.is_encoder_decoder else batch["input_ids"].shape[1]
            texts += self._tokenizer().batch_decode(result[:, begin:], skip_special_tokens=True)
        return texts[0] if isinstance(prompt, str) and len(texts) == 1 else texts

    def close(self) -> None:
        """Release the device, at the end of the token that a stream is at. The model cannot run any more."""
        self._closed = True
        close_streams(self.module)
        if self.offloaded is not None:
            self.offloaded.executor.close()

    def __enter__(self) -> "LeptonModel":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        raise InputError(
            f"model {type(self.module).__name__}: must not be copied or pickled, since a device belongs to it; save() "
            f"it, and load it where it is needed"
        )

    def _decoder(self) -> DecoderEngine | ReferenceEngine | None:
        """The decoder on the device, if whole layers run there."""
        engine = None if self.offloaded is None else self.offloaded.engine
        return engine if isinstance(engine, DecoderEngine | ReferenceEngine) else None

    def _tokenizer(self) -> PreTrainedTokenizerBase:
        if self.tokenizer is None:
            raise InputError("model: must have a tokenizer for text, but has none; pass token ids, or tokenizer=")
        return self.tokenizer

    def _check_open(self) -> None:
        if self._closed:
            raise InputError("model: must be open, but is closed; load it again")

    def _batches(self, prompt: Any, chat: bool | None, rows: int, mask: Any) -> list[dict[str, Any]]:
        """What to generate from, in groups that fit the device, each prompt being ``rows`` sequences."""
        decoder = self._decoder()
        fitting = None if decoder is None else decoder.slots
        if fitting is not None and rows > fitting:
            raise InputError(
                f"sequences: must be at least the {rows} beams or answers of a prompt, but the device has caches for "
                f"{fitting}; load the model with sequences={rows}"
            )
        if isinstance(prompt, Tensor):
            if fitting is not None and prompt.ndim == 2 and len(prompt) * rows > fitting:
                raise InputError(
                    f"prompt: must be at most {fitting} sequences at a time, the caches of the device, not "
                    f"{len(prompt) * rows}; load the model with sequences={len(prompt) * rows}, or split it"
                )
            return [{"input_ids": prompt}]
        if mask is not None:
            raise InputError("attention_mask: must be left out with text, which has its own; pass token ids with it")
        groups: list[Any] = [prompt]
        if isinstance(prompt, list | tuple) and fitting is not None:
            size = fitting // rows
            groups = [prompt[first : first + size] for first in range(0, max(1, len(prompt)), size)]
        batches = []
        for group in groups:
            batch = dict(self.encode(group, chat=chat))
            batch.pop("token_type_ids", None)
            batches.append(batch)
        return batches

    def _check_fits(self, options: dict[str, Any], new: int) -> None:
        """Raise :class:`InputError` if ``new`` tokens cannot follow, of an encoder-decoder model in the decoder."""
        assert isinstance(self.module, PreTrainedModel)
        ids, mask = options["input_ids"], options.get("attention_mask")
        if not self.module.config.is_encoder_decoder:
            self._check_ids("prompt", ids, mask, new=new)
            return
        self._check_ids("prompt", ids, mask)
        start, mask = options.get("decoder_input_ids"), options.get("decoder_attention_mask")
        start = torch.zeros(1, 1, dtype=torch.long) if start is None else start
        self._check_ids("decoder_input_ids", start, mask, new=new, decoder=True)

    def _check_ids(self, subject: str, ids: Any, mask: Any, *, new: int = 0, decoder: bool = False) -> None:
        assert isinstance(self.module, PreTrainedModel)
        length, on_device = longest(ids, mask), self._decoder()
        flat = bool(new) or on_device is not None
        check_ids(self.module, subject, ids, length=length, new=new, decoder=decoder, flat=flat)
        if new and on_device is not None and not fits(on_device.context, length, new):
            raise InputError(
                f"{subject}: {too_long(on_device.context, length, new)}, since the device was loaded with a context of "
                f"{on_device.context}; load the model with context={length + new}, or shorten it"
            )
