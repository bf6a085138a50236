"""The same call gives the same bits, whatever ran before it, and whatever went wrong."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from transformers import (
    DynamicCache,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    PreTrainedModel,
)

import lepton.ai as lai
from lepton.errors import DeviceError
from lepton_hw.errors import ErrorCode

SMALL: dict[str, Any] = {
    "hidden_size": 32,
    "intermediate_size": 32,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
    "vocab_size": 32,
    "max_position_embeddings": 64,
    "initializer_range": 0.2,
    "bos_token_id": 1,
    "eos_token_id": 2,
    "pad_token_id": 0,
}
LONG_ROPE = {
    "rope_type": "longrope",
    "rope_theta": 10_000.0,
    "short_factor": [1.0] * 8,
    "long_factor": [4.0] * 8,
    "original_max_position_embeddings": 8,
}
DYNAMIC = {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}

MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": lambda: LlamaForCausalLM(LlamaConfig(**SMALL)),
    "longrope": lambda: LlamaForCausalLM(LlamaConfig(**SMALL, rope_parameters=LONG_ROPE)),
    "dynamic": lambda: LlamaForCausalLM(LlamaConfig(**SMALL | {"max_position_embeddings": 8}, rope_parameters=DYNAMIC)),
    "window": lambda: MistralForCausalLM(MistralConfig(**SMALL, sliding_window=3)),
    "gpt2": lambda: GPT2LMHeadModel(
        GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64, vocab_size=32, initializer_range=0.2)
    ),
}

SLOTS = 2


def build(kind: str) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return MODELS[kind]().eval()


class Faulty:
    """A decoder that stops before, in or after some of its steps, as a device, a time-out or Ctrl-C does."""

    def __init__(self, decoder: Any) -> None:
        self._decoder = decoder
        self.context, self.slots = decoder.context, decoder.slots
        self.faults: Iterator[tuple[str, type[BaseException]] | None] = iter(())

    def programs(self) -> Any:
        return self._decoder.programs()

    def prefill(self, *inputs: Any, slot: int, position: int, all_logits: bool) -> Any:
        def compute(count: int) -> Any:
            parts = (part[:count] for part in inputs)
            return self._decoder.prefill(*parts, slot=slot, position=position, all_logits=all_logits)

        return self._faulty(compute, len(inputs[0]))

    def decode(self, *inputs: Any, slots: Any, positions: Any) -> Any:
        def compute(count: int) -> Any:
            parts = (part[:count] for part in inputs)
            return self._decoder.decode(*parts, slots=slots[:count], positions=positions[:count])

        return self._faulty(compute, len(slots))

    def _faulty(self, compute: Callable[[int], Any], count: int) -> Any:
        fault = next(self.faults, None)
        if fault is None:
            return compute(count)
        when, kind = fault
        if when == "in" and count > 1:
            compute(count // 2)
        elif when == "after":
            compute(count)
        if kind is DeviceError:
            raise DeviceError("test", ErrorCode.READ, 3, "Gemm")
        raise kind


FAULTS = st.one_of(
    st.none(),
    st.tuples(
        st.sampled_from(["before", "in", "after"]), st.sampled_from([DeviceError, KeyboardInterrupt, TimeoutError])
    ),
)
# Few tokens, so that sequences begin alike.
TOKENS = st.lists(st.sampled_from([3, 4]), min_size=1, max_size=5)


def change(data: st.DataObject, caches: list[DynamicCache], batch: int, columns: int) -> tuple[int, int]:
    """Do the same to two caches that have tokens: what beam search and assisted decoding do."""
    kind = data.draw(st.sampled_from(["none", "crop", "reorder", "select", "repeat"]))
    if kind == "crop" and columns > 1:
        count = data.draw(st.integers(1, columns - 1))
        for cache in caches:
            cache.crop(-count)
        columns -= count
    elif kind == "reorder":
        order = torch.tensor(data.draw(st.lists(st.integers(0, batch - 1), min_size=batch, max_size=batch)))
        for cache in caches:
            cache.reorder_cache(order)
    elif kind == "select":
        row = data.draw(st.integers(0, batch - 1))
        for cache in caches:
            cache.batch_select_indices(torch.tensor([row]))
        batch = 1
    elif kind == "repeat" and batch == 1:
        for cache in caches:
            cache.batch_repeat_interleave(2)
        batch = 2
    return batch, columns


def draw_call(data: st.DataObject, kind: str, batch: int, columns: int, embeds: torch.Tensor, cached: bool) -> Any:
    """Arguments of new tokens after ``columns`` others."""
    row = data.draw(TOKENS)
    rows = [row] + [data.draw(st.permutations(row)) for _ in range(batch - 1)]
    tokens = torch.tensor(rows)
    call: dict[str, Any] = {"input_ids": tokens}
    if data.draw(st.integers(0, 3)) == 0:
        call = {"inputs_embeds": embeds[tokens]}
    elif kind == "gpt2" and data.draw(st.integers(0, 3)) == 0:
        call["token_type_ids"] = torch.full_like(tokens, data.draw(st.sampled_from([5, 6])))
    new = tokens.shape[1]
    if data.draw(st.integers(0, 2)) == 0:
        first = data.draw(st.sampled_from([columns, 0, columns + 7]))
        call["position_ids"] = torch.arange(first, first + new)[None]
    if not columns and data.draw(st.integers(0, 2)) == 0:
        mask = torch.ones(batch, new)
        mask[0, : data.draw(st.integers(0, new - 1))] = 0
        call["attention_mask"] = mask
    call["logits_to_keep"] = data.draw(st.sampled_from([0, 0, 1, 2]))
    if not cached:
        call["use_cache"] = False
    return call


_loaded: dict[tuple[str, str], tuple[Any, Any]] = {}


@pytest.fixture(scope="module", autouse=True)
def close() -> Iterator[None]:
    """Models are loaded once, and closed in the end."""
    yield
    for models in _loaded.values():
        for model in models:
            model.close()
    _loaded.clear()


def models(kind: str, device: str) -> tuple[Any, Any]:
    """The same model twice: one that lives on, one that forgets after each call."""
    if (kind, device) not in _loaded:
        pair = tuple(lai.load_model(build(kind), device, sequences=SLOTS) for _ in range(2))
        for model in pair:
            # Dynamic frequencies are for more positions than the configuration says.
            forward: Any = model.module.forward
            forward.decoder.context = 64
            forward.decoder = Faulty(forward.decoder)
        _loaded[kind, device] = pair
    return _loaded[kind, device]


def check(data: st.DataObject, kind: str, device: str) -> None:
    """Calls on one model, each followed by the same on a model that holds nothing of earlier ones."""
    used, fresh = (model.module for model in models(kind, device))
    embeds = torch.randn(32, 32, generator=torch.Generator().manual_seed(0))
    conversations: list[tuple[list[DynamicCache], int, int, torch.Tensor | None]] = []
    for _ in range(data.draw(st.integers(2, 6))):
        index = data.draw(st.integers(0, len(conversations)))
        if index == len(conversations):
            caches, batch, columns, masks = [DynamicCache(), DynamicCache()], data.draw(st.integers(1, SLOTS)), 0, None
        else:
            caches, batch, columns, masks = conversations[index]
            if masks is None:
                batch, columns = change(data, caches, batch, columns)
        cached = index < len(conversations) or data.draw(st.booleans())
        call = draw_call(data, kind, batch, columns, embeds, cached)
        mask = call.get("attention_mask")
        if masks is not None:
            new = call.get("input_ids", call.get("inputs_embeds")).shape[1]
            mask = call["attention_mask"] = torch.cat([masks, torch.ones(batch, new)], 1)
        more = [{"past_key_values": cache} if cached else {} for cache in caches]
        decoder = used.forward.decoder
        decoder.faults = iter(data.draw(st.lists(FAULTS, max_size=3)))
        found = None
        again = data.draw(st.booleans())
        for _ in range(5 if again else 1):
            try:
                found = used(**call, **more[0]).logits
                break
            except (DeviceError, KeyboardInterrupt, TimeoutError):
                # Nothing of the call is in the cache: the very same call is made again, or another.
                assert caches[0].get_seq_length() == columns
        if found is None:
            conversations[index : index + 1] = [(caches, batch, columns, masks)] if columns else []
            continue
        for slot in fresh.forward._held:
            slot.clear()
        expected = fresh(**call, **more[1]).logits
        assert torch.equal(found, expected)
        if cached:
            entry = (caches, batch, caches[0].get_seq_length(), mask)
            conversations[index : index + 1] = [entry]
    for slot, held in enumerate(used.forward._held):
        assert len(held) <= used.forward.decoder.context, slot


@pytest.mark.parametrize("kind", MODELS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_history_on_the_reference(kind: str, data: st.DataObject) -> None:
    with torch.no_grad():
        check(data, kind, "reference")


@pytest.mark.parametrize("kind", ["llama", "longrope"])
@settings(max_examples=12, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.data())
def test_no_history_on_the_emulator(kind: str, data: st.DataObject) -> None:
    with torch.no_grad():
        check(data, kind, "emulator")


@pytest.mark.parametrize("device", ["reference", "emulator"])
@pytest.mark.parametrize("when", ["before", "in", "after"])
@pytest.mark.parametrize("kind", [DeviceError, KeyboardInterrupt, TimeoutError])
def test_an_interrupted_step(when: str, kind: type[BaseException], device: str) -> None:
    """A step of two sequences that did not end, and other tokens after it."""
    used, fresh = (model.module for model in models("llama", device))
    prompt = torch.tensor([[3, 4, 5], [6, 7, 8]])
    with torch.no_grad():
        cache, exact = used(prompt).past_key_values, fresh(prompt).past_key_values
        used.forward.decoder.faults = iter([(when, kind)])
        with pytest.raises(kind):
            used(torch.tensor([[9], [10]]), past_key_values=cache)
        assert cache.get_seq_length() == 3
        # The token whose step did not end is not believed to be there.
        step = {"input_ids": torch.tensor([[9, 11], [12, 10]]), "logits_to_keep": 1}
        for slot in fresh.forward._held:
            slot.clear()
        assert torch.equal(used(**step, past_key_values=cache).logits, fresh(**step, past_key_values=exact).logits)


def test_an_interrupted_prompt() -> None:
    """What was there before is found again, what was computed in part is not."""
    used, fresh = (model.module for model in models("llama", "emulator"))
    prompt = torch.arange(3, 30)[None]
    with torch.no_grad():
        used(prompt[:, :6])
        used.forward.decoder.faults = iter([("in", KeyboardInterrupt)])
        with pytest.raises(KeyboardInterrupt):
            used(prompt)
        assert torch.equal(used(prompt[:, :20]).logits, fresh(prompt[:, :20]).logits)
