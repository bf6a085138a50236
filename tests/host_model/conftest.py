"""Small random models, and the two executors that need no simulation."""

import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import WhitespaceSplit
from transformers import (
    BertConfig,
    BertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

import lepton.ai as lai

os.environ["TOKENIZERS_PARALLELISM"] = "false"
# What the tests of this folder share is imported by name.
sys.path.insert(0, str(Path(__file__).parent))

VOCABULARY = 256
LENGTH = 64


def _llama(tied: bool = False) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            hidden_size=64,
            intermediate_size=160,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            vocab_size=VOCABULARY,
            max_position_embeddings=LENGTH,
            tie_word_embeddings=tied,
            initializer_range=0.2,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


def _gpt2() -> PreTrainedModel:
    return GPT2LMHeadModel(
        GPT2Config(
            n_embd=64,
            n_layer=2,
            n_head=4,
            n_positions=LENGTH,
            vocab_size=VOCABULARY,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=0,
        )
    )


def _bert() -> PreTrainedModel:
    return BertModel(
        BertConfig(
            hidden_size=64,
            intermediate_size=128,
            num_hidden_layers=2,
            num_attention_heads=4,
            max_position_embeddings=LENGTH,
            vocab_size=VOCABULARY,
        )
    )


_MODELS: dict[str, Callable[[], PreTrainedModel]] = {
    "llama": _llama,
    "tied-llama": lambda: _llama(tied=True),
    "gpt2": _gpt2,
    "bert": _bert,
}


@pytest.fixture
def make_model() -> Callable[[str], PreTrainedModel]:
    """A function from ``llama``, ``tied-llama``, ``gpt2`` or ``bert`` to a random model, the same every time."""

    def make(name: str) -> PreTrainedModel:
        with torch.random.fork_rng():
            torch.manual_seed(1)
            return _MODELS[name]().eval()

    return make


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of words ``w3`` … ``w255``."""
    words = {"<pad>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i for i in range(3, VOCABULARY)}
    plain = Tokenizer(WordLevel(words, unk_token="<pad>"))
    plain.pre_tokenizer = WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.fixture
def folder(tmp_path: Path, make_model: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast) -> Path:
    """A saved llama with its tokenizer."""
    path = tmp_path / "llama"
    make_model("llama").save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture
def load(request: pytest.FixtureRequest) -> Iterator[Callable[..., lai.LeptonModel]]:
    """A function that loads what the test module's ``build`` makes of a kind."""
    loaded = []

    def load(kind: str, device: str, **options: Any) -> lai.LeptonModel:
        loaded.append(lai.load_model(request.module.build(kind), device, **options))
        return loaded[-1]

    yield load
    for model in loaded:
        model.close()
