"""generate() of transformers on different executors: identical tokens in every mode."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel, PreTrainedTokenizerFast

import lepton.ai as lai
from lepton.errors import FormatError, InputError
from lepton.placement.cost import ALWAYS

DEVICES = ("reference", "emulator")

MODES: dict[str, dict[str, Any]] = {
    "greedy": {"do_sample": False},
    "sampling": {"do_sample": True, "temperature": 1.5, "top_k": 50},
    "beams": {"num_beams": 3, "do_sample": False},
    "beam-sampling": {"num_beams": 3, "do_sample": True},
    "static-cache": {"do_sample": False, "cache_implementation": "static"},
    "no-cache": {"do_sample": False, "use_cache": False},
    "several": {"do_sample": True, "num_return_sequences": 3},
}


@pytest.fixture(params=["linears", "layers"])
def load(
    request: pytest.FixtureRequest,
    make_model: Callable[[str], PreTrainedModel],
    tokenizer: PreTrainedTokenizerFast,
) -> Iterator[Callable[..., Any]]:
    """A function (kind, device) → loaded random model, Linear by Linear or whole layers; all are closed at the end."""
    loaded = []
    layers = request.param == "layers"

    def load(kind: str, device: str) -> lai.LeptonModel:
        loaded.append(lai.load_model(make_model(kind), device, cost=ALWAYS, layers=layers, tokenizer=tokenizer))
        return loaded[-1]

    yield load
    for model in loaded:
        model.close()


@pytest.mark.parametrize(
    ("kind", "mode"),
    [*(("llama", mode) for mode in MODES), ("tied-llama", "greedy"), ("gpt2", "greedy"), ("gpt2", "beams")],
)
def test_tokens_are_identical(load: Callable[..., lai.LeptonModel], kind: str, mode: str) -> None:
    ids = torch.randint(3, 256, (2, 9), generator=torch.Generator().manual_seed(0))
    results = []
    for device in DEVICES:
        torch.manual_seed(7)
        results.append(load(kind, device).generate(ids, 12, **MODES[mode]))
    assert torch.equal(*results)
    assert results[0].shape[1] > ids.shape[1]


@pytest.mark.parametrize("mode", ["greedy", "beams", "static-cache"])
def test_left_padding(load: Callable[..., lai.LeptonModel], mode: str) -> None:
    prompts = ["w9 w8 w7 w6 w5", "w200", "w100 w30"]
    batches, singles = [], []
    for device in DEVICES:
        model = load("llama", device)
        batches.append(model.generate(prompts, 8, **MODES[mode]))
        singles.append([model.generate(prompt, 8, **MODES[mode]) for prompt in prompts])
    assert batches[0] == batches[1]
    assert singles[0] == singles[1]
    # Padding changes the order of float32 sums in PyTorch's attention, hence only the first word is compared.
    assert [text.split()[0] for text in batches[0]] == [text.split()[0] for text in singles[0]]


@pytest.mark.parametrize("kind", ["llama", "gpt2", "bert"])
def test_forward_is_identical_and_near_float32(
    load: Callable[..., lai.LeptonModel], make_model: Callable[[str], PreTrainedModel], kind: str
) -> None:
    ids = torch.randint(3, 256, (2, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[0, :5] = 0
    first, second = (load(kind, device)(input_ids=ids, attention_mask=mask)[0] for device in DEVICES)
    assert torch.equal(first, second)
    assert not first.requires_grad
    with torch.no_grad():
        exact = make_model(kind)(input_ids=ids, attention_mask=mask)[0]
    assert torch.nn.functional.cosine_similarity(first[mask > 0], exact[mask > 0], dim=-1).min() > 0.99
    assert not torch.equal(first, exact)


def test_cpu_is_plain_pytorch(
    load: Callable[..., lai.LeptonModel], make_model: Callable[[str], PreTrainedModel]
) -> None:
    ids = torch.arange(3, 20)[None]
    model = load("llama", "cpu")
    assert torch.equal(model(ids).logits, make_model("llama")(ids).logits)
    assert model.device == "cpu"
    assert model.explain().offloaded_mac_fraction == 0


def test_stream_gives_the_same_text(load: Callable[..., lai.LeptonModel]) -> None:
    model = load("llama", "emulator")
    text = model.generate("w5 w6", 12, do_sample=False)
    stream = model.generate("w5 w6", 12, do_sample=False, stream=True)
    assert isinstance(stream, lai.TextStream)
    assert "".join(stream) == text
    assert stream.token_ids == [int(word[1:]) for word in str(text).split()]


def test_stream_can_be_left(load: Callable[..., lai.LeptonModel]) -> None:
    model = load("llama", "emulator")
    stream = model.generate("w5 w6", 60, do_sample=False, min_new_tokens=60, stream=True)
    assert isinstance(stream, lai.TextStream)
    next(stream)
    stream.close()
    assert len(stream.token_ids) < 60
    assert not any(thread.name == "lepton-generate" for thread in threading.enumerate())


def test_stream_hands_on_errors(load: Callable[..., lai.LeptonModel]) -> None:
    model = load("llama", "emulator")
    with torch.no_grad():
        model.module.get_input_embeddings().weight[6] = torch.nan  # type: ignore[union-attr, index, operator]
    stream = model.generate("w5 w6", 4, stream=True)
    # Linear by Linear it is the first layer that notices.
    message = r"^(module '.*q_proj.*': activations|logits): must be finite, but (\[1, 0\] is nan|are not); "
    with pytest.raises(FormatError, match=message):
        list(stream)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            {"prompt": torch.full((1, 60), 5), "max_new_tokens": 6},
            r"^prompt: tokens and new tokens .* at most 64 together, not 60 and 6 new ones; shorten it$",
        ),
        (
            {"prompt": torch.tensor([[5, 256]])},
            r"^prompt: token ids must be 0 to 255, not 5 to 256; use the model's tokenizer$",
        ),
        (
            {"prompt": torch.zeros(1, 0, dtype=torch.long)},
            r"^prompt: must have token ids \[B, S\], not torch.int64\[1, 0\]",
        ),
        ({"prompt": torch.zeros(1, 3)}, r"^prompt: must have token ids \[B, S\], not torch.float32\[1, 3\]"),
        ({"prompt": 5}, r"^prompt: must be a text or several, not 5; pass token ids as a tensor$"),
        ({"prompt": "w5", "max_new_tokens": 0}, r"^max_new_tokens: must be a whole number from 1, not 0$"),
        ({"prompt": "w5", "chat": True}, r"^prompt: chat=True needs a chat template, but the model has none; "),
        ({"prompt": ["w5", "w6"], "stream": True}, r"^stream: must be one prompt with one answer, not several prompts"),
    ],
)
def test_bad_prompts(load: Callable[..., lai.LeptonModel], arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load("llama", "reference").generate(**({"max_new_tokens": 4} | arguments))


def test_too_long_forward(load: Callable[..., lai.LeptonModel]) -> None:
    with pytest.raises(InputError, match=r"^input_ids: tokens must be at most 64, not 65; shorten it$"):
        load("gpt2", "reference")(input_ids=torch.full((1, 65), 5))


def test_encoders_do_not_generate(load: Callable[..., lai.LeptonModel]) -> None:
    with pytest.raises(InputError, match=r"^model BertModel: must be able to generate, but is not; call forward$"):
        load("bert", "reference").generate("w5")


def test_closed_model(load: Callable[..., lai.LeptonModel]) -> None:
    model = load("llama", "emulator")
    model.close()
    with pytest.raises(InputError, match=r"^model: must be open, but is closed; load it again$"):
        model.generate("w5")


def test_chat_template(load: Callable[..., lai.LeptonModel]) -> None:
    model = load("llama", "reference")
    assert model.encode("w5").input_ids.tolist() == [[5]]
    assert model.tokenizer is not None
    model.tokenizer.chat_template = "w9 {{ messages[0].content }} w10"
    assert model.encode("w5").input_ids.tolist() == [[9, 5, 10]]
    assert model.encode("w5", chat=False).input_ids.tolist() == [[5]]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"device": "gpu"}, r"^device 'gpu': must be one of .*reference, emulator, rtl; see `lepton devices`$"),
        (
            {"config": "huge"},
            r"^configuration 'huge': must be one of nano, sim, sim_wide, pynq_z2, zcu104, u250; see `lepton devices`$",
        ),
        ({"host_device": "tpu"}, r"^host_device 'tpu': must be cpu or cuda; the accelerator is chosen by device=$"),
    ],
)
def test_bad_options(folder: Path, options: dict[str, str], message: str) -> None:
    with pytest.raises(InputError if "config" not in options else ValueError, match=message):
        lai.load_model(folder, **options)  # type: ignore[arg-type]


@pytest.mark.skipif(torch.cuda.is_available(), reason="CUDA is there")
def test_missing_cuda(folder: Path) -> None:
    with pytest.raises(
        InputError, match=r"^host_device 'cuda': must be available, but PyTorch finds no CUDA device; use cpu$"
    ):
        lai.load_model(folder, host_device="cuda")
