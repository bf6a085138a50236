"""Text while it is generated."""

import atexit
import threading
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase, StoppingCriteria, StoppingCriteriaList, TextIteratorStreamer


class TextStream(Iterator[str]):
    """Pieces of text while they are generated, in a thread that ends with the iteration or :meth:`close`.

    ``token_ids`` are the new tokens so far. A stream that nobody holds any more ends after the token it is at.
    """

    def __init__(
        self,
        generate: Callable[..., Any],
        tokenizer: PreTrainedTokenizerBase,
        options: dict[str, Any],
        owner: object = None,
    ) -> None:
        self.token_ids: list[int] = []
        self._streamer = _Streamer(tokenizer, self.token_ids)
        self._worker = _Worker(generate, options, self._streamer, owner)
        self._ended = False
        self._worker.start()

    def __next__(self) -> str:
        if self._ended:
            raise StopIteration
        try:
            return next(self._streamer)
        except StopIteration:
            self._ended = True
            self._worker.join()
            if self._worker.error is not None:
                raise self._worker.error from None
            raise
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        """End the generation early; pieces that are there already can still be read."""
        self._worker.end()

    def __del__(self) -> None:
        self._worker.stop.set()


def close_streams(owner: object = None) -> None:
    """End the generations of ``owner``, or all of them."""
    for thread in threading.enumerate():
        if isinstance(thread, _Worker) and (owner is None or thread.owner is owner):
            thread.end()


# A thread that is still computing when the interpreter goes would abort the process.
atexit.register(close_streams)


class _Worker(threading.Thread):
    """Generates until it is done or told to stop. It knows nothing of its stream, which can so be dropped."""

    def __init__(
        self, generate: Callable[..., Any], options: dict[str, Any], streamer: "_Streamer", owner: object
    ) -> None:
        super().__init__(name="lepton-generate", daemon=True)
        self.owner = owner
        self.stop = threading.Event()
        self.error: BaseException | None = None
        self._generate = generate
        self._streamer = streamer
        criteria = StoppingCriteriaList([*(options.get("stopping_criteria") or ()), _StopOn(self.stop)])
        self._options = {**options, "streamer": streamer, "stopping_criteria": criteria}

    def run(self) -> None:
        try:
            self._generate(**self._options)
        except BaseException as error:  # handed to the iterating thread
            self.error = error
            self._streamer.end()

    def end(self) -> None:
        """Stop after the token that is being computed, and wait for it."""
        self.stop.set()
        self.join()


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
