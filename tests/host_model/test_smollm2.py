"""SmolLM2-135M, the real one."""

from collections.abc import Iterator
from pydoc_data.topics import topics
from typing import Any

import pytest

import lepton.ai as lai
from lepton.bench.evaluate import perplexity
from lepton.errors import InputError

MODEL = "smollm2-135m"
PROMPTS = (
    "What is gravity?",
    "Write a short poem about the sea.",
    "List three uses of a paper clip and say which one is the most surprising.",
)


@pytest.fixture(scope="module")
def reference() -> Iterator[lai.LeptonModel]:
    with lai.load_model(MODEL, "reference", strict=True) as model:
        yield model


@pytest.fixture(scope="module")
def emulator() -> Iterator[lai.LeptonModel]:
    with lai.load_model(MODEL, "emulator", strict=True) as model:
        yield model


def tokens(model: lai.LeptonModel, prompt: str, count: int) -> Any:
    ids = model.encode(prompt).input_ids
    return model.generate(ids, count, do_sample=False)[0, ids.shape[1] :].tolist()  # type: ignore[reportIndexIssue]


def test_a_few_tokens(reference: lai.LeptonModel, emulator: lai.LeptonModel) -> None:
    report = emulator.explain()
    linears = [placement for placement in report.offloaded if placement.kind == "Linear"]
    assert len(linears) == 7 * 30 + 1
    assert report.offloaded_mac_fraction == 1
    first, second = (tokens(model, PROMPTS[0], 4) for model in (reference, emulator))
    assert first == second
    assert emulator.tokenizer is not None
    assert emulator.tokenizer.decode(first) == "Gravity is a"


@pytest.mark.slow
@pytest.mark.parametrize("prompt", PROMPTS)
def test_64_tokens(reference: lai.LeptonModel, emulator: lai.LeptonModel, prompt: str) -> None:
    assert tokens(reference, prompt, 64) == tokens(emulator, prompt, 64)


@pytest.mark.slow
def test_perplexity(emulator: lai.LeptonModel) -> None:
    text = "\n".join(topics.values())
    with lai.load_model(MODEL, "cpu") as float32:
        exact = perplexity(float32, text, 2048)
    assert perplexity(emulator, text, 2048) <= 1.005 * exact


@pytest.mark.slow
def test_the_whole_context(emulator: lai.LeptonModel) -> None:
    """A text of 8,182 tokens in 16 chunks, and tokens behind it up to the last place, but not beyond."""
    ids = emulator.encode("\n".join(topics.values())).input_ids[:, :8182]
    new = emulator.generate(ids, 10, do_sample=False)
    assert new.shape == (1, 8192)  # type: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match="must be at most 8192 together, not 8182 and 11"):
        emulator.generate(ids, 11, do_sample=False)
