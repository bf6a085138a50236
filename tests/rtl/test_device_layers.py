"""Whole decoder layers on the RTL: memory afterwards, caches and logits with it, is that of the emulator."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from itertools import product

import numpy as np
import pytest

from lepton.activation import Activation, soft_cap
from lepton.devices.emulator import EmulatorDevice
from lepton.devices.registers import RegisterDevice
from lepton.runtime.decoder import DecoderEngine
from lepton.runtime.encoder import EncoderEngine
from lepton.spec import Attention, Linear, Mlp, Norm, Residual, Spec, TransformerSpec
from lepton_hw.config import ATTENTION_CHUNK
from lepton_hw.layout import Bytes, value_beat, value_stride
from lepton_hw.numerics import F32, quantize_weights
from lepton_sim.device import DDR, ZERO_WAIT, MemoryTiming

FAST = ("nano", "sim", "sim_wide", "pynq_z2")
LARGE = tuple(pytest.param(name, marks=pytest.mark.slow) for name in ("zcu104", "u250"))  # minutes to build

TIMINGS = {
    "zero_wait": ZERO_WAIT,
    "stalls": MemoryTiming.random(64),
    "refresh": DDR,
}


def random_linear(rng: np.random.Generator, columns: int, length: int, *, bias: bool) -> Linear:
    weights = quantize_weights((rng.standard_normal((columns, length)) / np.sqrt(length)).astype(np.float32))
    return Linear(weights, rng.standard_normal(columns).astype(np.float32) if bias else None)


def random_norm(rng: np.random.Generator, hidden: int, *, centered: bool, eps: float = 1e-5) -> Norm:
    weight, bias = (rng.standard_normal(hidden).astype(np.float32) / 8 for _ in range(2))
    return Norm(1 + weight, bias if centered else None, eps)


def decoder(rng: np.random.Generator, *, hidden: int = 128, heads: int = 4, plain: bool = False) -> Spec:
    """A random decoder of two layers: in the manner of Llama, or plain, in that of GPT-2."""
    head_dim, width, vocabulary = 64, 192, 90
    num_kv_heads = heads if plain else heads // 2
    linear, norm = partial(random_linear, rng, bias=plain), partial(random_norm, rng, hidden, centered=plain)

    def layer(activation: Activation, window: int) -> tuple[Residual[Linear, Norm], ...]:
        attention = Attention(
            qkv=linear((heads + 2 * num_kv_heads) * head_dim, hidden, bias=True),
            output=linear(hidden, heads * head_dim),
            scale=head_dim**-0.5,
            window=window,
            rotary=None if plain else 0,
        )
        mlp = Mlp(
            gate=None if plain else linear(width, hidden),
            up=linear(width, hidden),
            down=linear(hidden, width),
            activation=activation,
        )
        return Residual(body=attention, pre_norm=norm()), Residual(body=mlp, pre_norm=norm(eps=1e-3))

    kinds = ((Activation.GELU_TANH, 0), (Activation.GELU, 0)) if plain else ((Activation.SILU, 0), (Activation.RELU, 7))
    return TransformerSpec(
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=num_kv_heads,
        head_dim=head_dim,
        intermediate_size=width,
        vocab_size=vocabulary,
        layers=tuple(layer(*kind) for kind in kinds),
        norm=norm(),
        lm_head=linear(vocabulary, hidden, bias=False),
        rotary_dim=0 if plain else head_dim,
    )


def other_decoder(rng: np.random.Generator) -> Spec:
    """What the other decoders do not have: norms behind branches, over all heads, a cap on scores, heads that are
    rotated in part by one of two tables, a branch parallel to the one before it, multipliers."""
    spec = decoder(rng)
    norm = partial(random_norm, rng, centered=False)
    first, second = spec.layers
    attention, mlp = (residual.body for residual in first)
    attention = replace(attention, joint_norms=True, query_norm=norm(256), key_norm=norm(128), rotary=1)
    capped = replace(second[0].body, scores=soft_cap(3.0), query_norm=norm(64), rotary=None)
    layers = (
        (Residual(body=attention, post_norm=norm(128)), Residual(body=mlp, post_norm=norm(128), multiplier=0.5)),
        (
            Residual(body=capped, pre_norm=norm(128), post_norm=norm(128)),
            Residual(body=second[1].body, pre_norm=norm(128), parallel=True),
        ),
    )
    return replace(spec, layers=layers, rotary_dim=32, rotary_tables=2)


DECODERS: dict[str, Callable[[np.random.Generator], Spec]] = {
    "llama": decoder,
    "gpt2": partial(decoder, plain=True),
    "other": other_decoder,
}


def compare_counters(rtl: RegisterDevice, emulator: EmulatorDevice) -> None:
    found, expected = rtl.counters(), emulator.counters()
    for name in ("array_busy", "read_beats", "weight_beats", "write_beats"):
        assert getattr(found, name) == getattr(expected, name), name


@pytest.mark.parametrize("config", [*FAST, *LARGE])
@pytest.mark.parametrize("timing", TIMINGS)
@pytest.mark.parametrize("kind", DECODERS)
def test_decoder_steps(machine_of: Callable, config: str, timing: str, kind: str) -> None:
    """A prompt of several row blocks, tokens after it, and a batch of sequences at different positions."""
    rng = np.random.default_rng(5)
    machine = machine_of(config, TIMINGS[timing])
    machine.core.memory[:] = 0
    spec = DECODERS[kind](rng)
    rtl = RegisterDevice("rtl", machine.core, machine.config)
    emulator = EmulatorDevice(machine.config, machine.memory_bytes, machine.base)
    engines = [DecoderEngine(device, spec, context=100, slots=2) for device in (rtl, emulator)]

    def inputs(count: int) -> tuple[F32, F32, F32]:
        x = rng.standard_normal((count, spec.hidden_size)).astype(np.float32)
        angles = rng.uniform(0, 7, (count, spec.angles))
        return x, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def compare(step: Callable[[DecoderEngine], F32]) -> None:
        logits = [step(engine) for engine in engines]
        np.testing.assert_array_equal(*(values.view(np.uint32) for values in logits))
        compare_counters(rtl, emulator)

    prompt, token, other, batch = inputs(21), inputs(1), inputs(3), inputs(2)
    compare(lambda engine: engine.prefill(*prompt))
    compare(lambda engine: engine.decode(*token, positions=[21]))
    compare(lambda engine: engine.prefill(*other, slot=1, all_logits=True))
    compare(lambda engine: engine.decode(*batch, slots=(0, 1), positions=[22, 3]))
    emulated = emulator.read(engines[1].caches)
    np.testing.assert_array_equal(rtl.read(engines[0].caches), emulated)
    assert emulated.any()


def fill_caches(engines: Sequence[DecoderEngine], rng: np.random.Generator) -> None:
    """Random keys and values everywhere, the same ones for all."""
    layout = engines[0]._layout
    size, beat = layout.config.array_size, layout.config.beat_bytes
    head_dim = layout.spec.head_dim

    def scales(*shape: int) -> Bytes:
        return rng.uniform(0.001, 0.01, shape).astype(np.float32).view(np.uint8)

    for layer, slot, head in product(
        range(len(layout.spec.layers)), range(layout.slots), range(layout.spec.num_kv_heads)
    ):
        blocks = layout.context // size
        keys = rng.integers(0, 256, (blocks, 4 + head_dim, beat), dtype=np.uint8)
        keys[:, :4] = scales(blocks, size).reshape(blocks, 4, beat)
        parts = [("keys", 0, keys), ("scales", 0, scales(layout.context))]
        for chunk, block in product(range(0, layout.context, ATTENTION_CHUNK), range(head_dim // size)):
            tokens = min(ATTENTION_CHUNK, layout.context - chunk)
            at = (block * value_stride(layout.config, layout.context) + value_beat(chunk)) * beat
            parts.append(("values", at, rng.integers(0, 256, (tokens, beat), dtype=np.uint8)))
        for (kind, offset, data), engine in product(parts, engines):
            place = layout.cache(kind, layer, slot, head).offset + offset
            engine.device.write(engine.caches, data.reshape(-1), place)


@pytest.mark.parametrize("config", [*FAST, *LARGE])
@pytest.mark.parametrize("timing", TIMINGS)
def test_steps_across_chunks(machine_of: Callable, config: str, timing: str) -> None:
    """A prompt over the end of a chunk, a token behind it, and batches in one, two and three chunks."""
    rng = np.random.default_rng(7)
    machine = machine_of(config, TIMINGS[timing])
    machine.core.memory[:] = 0
    spec = decoder(rng, hidden=64, heads=2)
    rtl = RegisterDevice("rtl", machine.core, machine.config)
    emulator = EmulatorDevice(machine.config, machine.memory_bytes, machine.base)
    engines = [DecoderEngine(device, spec, context=1088, slots=2) for device in (rtl, emulator)]
    fill_caches(engines, rng)

    def inputs(count: int) -> tuple[F32, F32, F32]:
        x = rng.standard_normal((count, spec.hidden_size)).astype(np.float32)
        angles = rng.uniform(0, 7, (count, spec.angles))
        return x, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)

    def compare(step: Callable[[DecoderEngine], F32]) -> None:
        logits = [step(engine) for engine in engines]
        np.testing.assert_array_equal(*(values.view(np.uint32) for values in logits))
        compare_counters(rtl, emulator)

    prompt, token, batch = inputs(7), inputs(1), inputs(2)
    compare(lambda engine: engine.prefill(*prompt, position=509, all_logits=True))
    compare(lambda engine: engine.decode(*token, positions=[516]))
    compare(lambda engine: engine.decode(*batch, slots=(0, 1), positions=[517, 1024]))
    compare(lambda engine: engine.decode(*batch, slots=(1, 0), positions=[3, 518]))
    np.testing.assert_array_equal(rtl.read(engines[0].caches), emulator.read(engines[1].caches))


def encoder(rng: np.random.Generator, *, hidden: int = 128, heads: int = 2, layers: int = 2) -> Spec:
    """A random encoder in the manner of BERT."""
    head_dim, width = 64, 192
    linear = partial(random_linear, rng, bias=True)
    norm = partial(random_norm, rng, hidden, centered=True, eps=1e-12)

    def layer() -> tuple[Residual[Linear, Norm], ...]:
        attention = Attention(
            qkv=linear(3 * heads * head_dim, hidden),
            output=linear(hidden, heads * head_dim),
            scale=head_dim**-0.5,
            rotary=None,
        )
        mlp = Mlp(gate=None, up=linear(width, hidden), down=linear(hidden, width), activation=Activation.GELU)
        return Residual(body=attention, sum_norm=norm()), Residual(body=mlp, sum_norm=norm())

    return TransformerSpec(
        hidden_size=hidden,
        num_heads=heads,
        num_kv_heads=heads,
        head_dim=head_dim,
        intermediate_size=width,
        layers=tuple(layer() for _ in range(layers)),
        causal=False,
    )


@pytest.mark.parametrize("config", [*FAST, *LARGE])
@pytest.mark.parametrize("timing", TIMINGS)
def test_encoder_passes(machine_of: Callable, config: str, timing: str) -> None:
    """A sequence of several row blocks, and a shorter one where it was."""
    rng = np.random.default_rng(6)
    machine = machine_of(config, TIMINGS[timing])
    machine.core.memory[:] = 0
    spec = encoder(rng)
    rtl = RegisterDevice("rtl", machine.core, machine.config)
    emulator = EmulatorDevice(machine.config, machine.memory_bytes, machine.base)
    engines = [EncoderEngine(device, spec, context=60) for device in (rtl, emulator)]
    for tokens in (35, 10):
        x = rng.standard_normal((tokens, spec.hidden_size)).astype(np.float32)
        np.testing.assert_array_equal(*(engine.run(x).view(np.uint32) for engine in engines))
        compare_counters(rtl, emulator)
    emulated = emulator.read(engines[1].caches)
    np.testing.assert_array_equal(rtl.read(engines[0].caches), emulated)
    assert emulated.any()


@pytest.mark.slow
def test_an_encoder_pass_across_chunks(machine_of: Callable) -> None:
    """Tokens of the first chunk see those of the second."""
    rng = np.random.default_rng(8)
    machine = machine_of("nano")
    machine.core.memory[:] = 0
    spec = encoder(rng, hidden=64, heads=1, layers=1)
    rtl = RegisterDevice("rtl", machine.core, machine.config)
    emulator = EmulatorDevice(machine.config, machine.memory_bytes, machine.base)
    x = rng.standard_normal((515, spec.hidden_size)).astype(np.float32)
    hidden = [EncoderEngine(device, spec, context=520).run(x) for device in (rtl, emulator)]
    np.testing.assert_array_equal(*(values.view(np.uint32) for values in hidden))
    compare_counters(rtl, emulator)
