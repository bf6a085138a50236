"""MiniLM, the real sentence encoder."""

from collections.abc import Iterator
from pydoc_data.topics import topics

import pytest
import torch

import lepton.ai as lai
from lepton.bench.evaluate import sentences, similarity

MODEL = "minilm-l6-v2"
TEXTS = sentences("\n".join(topics.values()), 50)


@pytest.fixture(scope="module")
def emulator() -> Iterator[lai.LeptonModel]:
    with lai.load_model(MODEL, "emulator", strict=True) as model:
        yield model


def hidden(model: lai.LeptonModel, text: str) -> torch.Tensor:
    assert model.tokenizer is not None
    return model.forward(**model.tokenizer(text, return_tensors="pt")).last_hidden_state


def test_a_sentence(emulator: lai.LeptonModel) -> None:
    """Every layer on the device, with the reference's bits."""
    assert emulator.explain().offloaded_mac_fraction == 1
    with lai.load_model(MODEL, "reference") as reference:
        assert torch.equal(hidden(emulator, TEXTS[0]), hidden(reference, TEXTS[0]))


@pytest.mark.slow
def test_50_sentences(emulator: lai.LeptonModel) -> None:
    with lai.load_model(MODEL, "cpu") as float32:
        cosines = similarity(emulator, float32, TEXTS)
    assert len(cosines) == 50
    assert sum(cosines) / 50 >= 0.999
    assert min(cosines) >= 0.998


@pytest.mark.slow
def test_a_sentence_on_the_rtl(emulator: lai.LeptonModel) -> None:
    text = "The array is as wide as the bus."
    with lai.load_model(MODEL, "reference") as reference:
        expected = hidden(reference, text)
    assert torch.equal(hidden(emulator, text), expected)
    with lai.load_model(MODEL, "rtl", context=64, timeout=3600) as rtl:
        assert torch.equal(hidden(rtl, text), expected)
