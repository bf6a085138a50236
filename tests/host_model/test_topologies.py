"""What a spec can say that no family of this release says at once: the device computes what the reference does."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest

from lepton.activation import soft_cap
from lepton.bench.shapes import DecoderSizes, random_decoder
from lepton.compiler.layout import unsupported_reason
from lepton.devices.emulator import EmulatorDevice
from lepton.frontend.proof import _thresholds
from lepton.runtime.decoder import DecoderEngine
from lepton.runtime.encoder import EncoderEngine
from lepton.runtime.reference import ReferenceEncoder, ReferenceEngine
from lepton.spec import Norm, Spec
from lepton_hw.config import get_config
from lepton_hw.numerics import F32

SIZES = DecoderSizes(hidden_size=64, num_heads=4, num_kv_heads=2, head_dim=32, intermediate_size=96)


def changed(**changes: Callable[[Any, Callable[[int], Norm]], Any]) -> Spec:
    """Two layers whose ``attention``, ``mlp`` or their ``body`` are changed by functions of these and of norms."""
    rng = np.random.default_rng(3)
    spec = random_decoder(2, SIZES)

    def norm(length: int, *, centered: bool = False) -> Norm:
        weight, bias = (rng.uniform(0.5, 2, length).astype(np.float32) for _ in range(2))
        return Norm(weight, bias if centered else None, 1e-3)

    layers = []
    for attention, mlp in spec.layers:
        body = changes.get("body", lambda body, _: body)(attention.body, norm)
        attention = changes.get("attention", lambda part, _: part)(replace(attention, body=body), norm)
        layers.append((attention, changes.get("mlp", lambda part, _: part)(mlp, norm)))
    return replace(spec, layers=tuple(layers))


def centered(part: Any, norm: Any, *, name: str) -> Any:
    return replace(part, **{name: norm(64, centered=True)})


TOPOLOGIES: dict[str, Callable[[], Spec]] = {
    "as Llama": changed,
    "norms behind": lambda: changed(
        attention=lambda part, norm: replace(part, pre_norm=None, post_norm=norm(64)),
        mlp=lambda part, norm: replace(part, pre_norm=None, post_norm=norm(64)),
    ),
    "norms of sums": lambda: changed(
        attention=lambda part, norm: replace(part, pre_norm=None, sum_norm=norm(64)),
        mlp=partial(centered, name="sum_norm"),
    ),
    "LayerNorms behind": lambda: changed(
        attention=partial(centered, name="post_norm"), mlp=partial(centered, name="post_norm")
    ),
    "parallel": lambda: changed(mlp=lambda part, norm: replace(part, pre_norm=norm(64), parallel=True)),
    "parallel with one norm before and one behind": lambda: changed(
        attention=lambda part, norm: replace(part, post_norm=norm(64)),
        mlp=lambda part, norm: replace(part, pre_norm=None, post_norm=norm(64), parallel=True),
    ),
    "multipliers": lambda: changed(
        attention=lambda part, _: replace(part, multiplier=0.3), mlp=lambda part, _: replace(part, multiplier=-1.7)
    ),
    "norms of heads": lambda: changed(
        body=lambda body, norm: replace(body, query_norm=norm(32), key_norm=norm(32)),
    ),
    "norms of all heads": lambda: changed(
        body=lambda body, norm: replace(body, query_norm=norm(128), key_norm=norm(64), joint_norms=True),
    ),
    "a norm of queries alone": lambda: changed(body=lambda body, norm: replace(body, query_norm=norm(32))),
    "rotated in part": lambda: replace(changed(), rotary_dim=16),
    "the second of two tables": lambda: replace(
        changed(body=lambda body, _: replace(body, rotary=1)), rotary_dim=32, rotary_tables=2
    ),
    "not rotated": lambda: changed(body=lambda body, _: replace(body, rotary=None)),
    "a cap on scores": lambda: changed(body=lambda body, _: replace(body, scores=soft_cap(2.0), scale=1.5)),
    "a window": lambda: changed(body=lambda body, _: replace(body, window=9)),
    "another scale": lambda: changed(body=lambda body, _: replace(body, scale=0.7)),
}


def inputs(spec: Spec, rng: np.random.Generator, count: int) -> tuple[F32, F32, F32]:
    x = rng.standard_normal((count, spec.hidden_size)).astype(np.float32)
    angles = rng.uniform(0, 7, (count, spec.angles))
    return x, np.cos(angles).astype(np.float32), np.sin(angles).astype(np.float32)


@pytest.mark.parametrize("kind", TOPOLOGIES)
@pytest.mark.parametrize("config", ["nano", "sim"])
def test_the_device_computes_what_the_reference_does(kind: str, config: str) -> None:
    """A prompt of several row blocks, tokens after it, and a batch; each kind differs from the others."""
    spec = TOPOLOGIES[kind]()
    rng = np.random.default_rng(1)
    prompt, token, batch = inputs(spec, rng, 37), inputs(spec, rng, 1), inputs(spec, rng, 2)
    found = []
    with EmulatorDevice(get_config(config), 1 << 24) as device:
        for engine in (DecoderEngine(device, spec, context=64, slots=2), ReferenceEngine(spec, context=64, slots=2)):
            logits = [
                engine.prefill(*prompt, all_logits=True),
                engine.decode(*token, positions=[37]),
                engine.decode(*batch, slots=(0, 1), positions=[38, 0]),
            ]
            found.append(np.concatenate(logits))
    np.testing.assert_array_equal(*(values.view(np.uint32) for values in found))
    assert np.isfinite(found[0]).all()
    plain = random_decoder(2, SIZES)
    if kind != "as Llama" and spec.angles == plain.angles:
        other = ReferenceEngine(plain, context=64).prefill(*prompt, all_logits=True)
        assert not np.array_equal(found[1][: len(other)], other)


def test_thresholds_of_a_config() -> None:
    """Wherever they are in it."""
    config = {
        "vocab_size": 1000,
        "max_position_embeddings": 400,
        "sliding_window": None,
        "rope_parameters": {"full": {"original_max_position_embeddings": 64}},
        "attention_chunk_size": 128,
    }
    assert sorted(_thresholds(config)) == [64, 128, 400]


def encoder(**changes: Callable[[Any, Callable[[int], Norm]], Any]) -> Spec:
    """The same as an encoder: nothing is rotated, and there are no logits."""
    spec = changed(body=lambda body, _: replace(body, rotary=None), **changes)
    return replace(spec, causal=False, rotary_dim=0, lm_head=None, vocab_size=0)


ENCODERS: dict[str, Callable[[], Spec]] = {
    "norms before": encoder,
    "no last norm": lambda: replace(encoder(), norm=None),
    "LayerNorms of sums": lambda: encoder(
        attention=lambda part, norm: centered(replace(part, pre_norm=None), norm, name="sum_norm"),
        mlp=lambda part, norm: centered(replace(part, pre_norm=None), norm, name="sum_norm"),
    ),
    "norms on both sides": lambda: encoder(attention=partial(centered, name="post_norm")),
}


@pytest.mark.parametrize("kind", ENCODERS)
@pytest.mark.parametrize("config", ["nano", "sim"])
def test_encoders(kind: str, config: str) -> None:
    """A sequence of several row blocks, the last not full, and a shorter one."""
    spec = ENCODERS[kind]()
    rng = np.random.default_rng(2)
    with EmulatorDevice(get_config(config), 1 << 24) as device:
        engine, reference = EncoderEngine(device, spec, context=64), ReferenceEncoder(spec, context=64)
        for tokens in (37, 5):
            x, _, _ = inputs(spec, rng, tokens)
            np.testing.assert_array_equal(engine.run(x).view(np.uint32), reference.run(x).view(np.uint32))


def test_encoders_that_no_pass_is_made_for() -> None:
    """They are said to be so, by what they are."""
    rotated = replace(changed(), causal=False)
    assert "rotated or normalized" in str(unsupported_reason(rotated, get_config("sim")))
    parallel = encoder(mlp=lambda part, _: replace(part, parallel=True))
    assert "attention with other branches after it" in str(unsupported_reason(parallel, get_config("sim")))
