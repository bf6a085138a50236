"""generate() and forward(): what transformers computes, or an error before anything is computed."""

import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, decoders
from tokenizers.models import BPE
from tokenizers.pre_tokenizers import ByteLevel
from transformers import (
    BartConfig,
    BartForConditionalGeneration,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    RobertaConfig,
    RobertaForMultipleChoice,
    RobertaModel,
    T5Config,
    T5ForConditionalGeneration,
)

import lepton.ai as lai
from lepton.errors import InputError
from lepton.placement.cost import ALWAYS

Load = Callable[..., lai.LeptonModel]
VOCABULARY = 256
IDS = torch.randint(3, VOCABULARY, (1, 9), generator=torch.Generator().manual_seed(0))


def _llama(**options: Any) -> PreTrainedModel:
    return LlamaForCausalLM(
        LlamaConfig(
            **{
                "hidden_size": 64,
                "intermediate_size": 96,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "num_key_value_heads": 2,
                "vocab_size": VOCABULARY,
                "max_position_embeddings": 64,
                "initializer_range": 0.2,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "pad_token_id": 0,
            }
            | options
        )
    )


def _bart(**options: Any) -> PreTrainedModel:
    return BartForConditionalGeneration(
        BartConfig(
            **{
                "vocab_size": VOCABULARY,
                "d_model": 64,
                "encoder_layers": 1,
                "decoder_layers": 1,
                "encoder_attention_heads": 4,
                "decoder_attention_heads": 4,
                "encoder_ffn_dim": 96,
                "decoder_ffn_dim": 96,
                "max_position_embeddings": 24,
                "pad_token_id": 0,
                "bos_token_id": 1,
                "eos_token_id": 2,
                "decoder_start_token_id": 2,
                "forced_eos_token_id": None,
                "init_std": 0.5,
            }
            | options
        )
    )


def _t5() -> PreTrainedModel:
    return T5ForConditionalGeneration(
        T5Config(
            vocab_size=VOCABULARY,
            d_model=64,
            d_kv=16,
            d_ff=96,
            num_layers=1,
            num_heads=4,
            decoder_start_token_id=0,
            pad_token_id=0,
            eos_token_id=2,
            initializer_factor=2.0,
        )
    )


def build(make: Callable[..., PreTrainedModel], **options: Any) -> PreTrainedModel:
    with torch.random.fork_rng():
        torch.manual_seed(1)
        return make(**options).eval()


@pytest.fixture
def load(tokenizer: PreTrainedTokenizerFast) -> Iterator[Load]:
    """A function (maker, device, options of load_model) → loaded model; all are closed at the end."""
    loaded = []

    def load(make: Callable[..., PreTrainedModel], device: str = "emulator", /, **options: Any) -> lai.LeptonModel:
        known = {name: options.pop(name) for name in list(options) if name in _SHAPE}
        loaded.append(lai.load_model(build(make, **known), device, cost=ALWAYS, tokenizer=tokenizer, **options))
        return loaded[-1]

    yield load
    for model in loaded:
        model.close()


_SHAPE = ("max_position_embeddings", "rope_parameters", "use_cache")


def _words(count: int, first: int = 3) -> str:
    return " ".join(f"w{first + i}" for i in range(count))


@pytest.mark.parametrize("make", [_bart, _t5])
@pytest.mark.parametrize("device", ["cpu", "reference"])
@pytest.mark.parametrize("length", [2, 20])
def test_A11_text_of_an_encoder_decoder(load: Load, make: Any, device: str, length: int) -> None:
    """The answer is all that the decoder says, however long the prompt is."""
    model = load(make, device)
    options: dict[str, Any] = {"do_sample": False, "suppress_tokens": [0, 1, 2]}
    ids = model.encode(_words(length))
    expected = model.module.generate(**ids, max_new_tokens=7, **options)  # type: ignore[reportCallIssue]
    text = model.tokenizer.batch_decode(expected, skip_special_tokens=True)[0]  # type: ignore[union-attr]
    assert len(text.split()) == 7
    assert model.generate(_words(length), 7, **options) == text
    assert "".join(model.generate(_words(length), 7, stream=True, **options)) == text
    texts = [_words(length), _words(3, 50)]
    assert model.generate(texts, 7, **options) == [model.generate(t, 7, **options) for t in texts]


def test_A11_limits_of_each_side(load: Load) -> None:
    model = load(_bart, "reference")
    ids = torch.full((1, 24), 5)
    assert model.generate(ids, 24, min_new_tokens=24, do_sample=False).shape == (1, 25)
    with pytest.raises(InputError, match=r"^prompt: tokens must be at most 24, not 25"):
        model.generate(torch.full((1, 25), 5), 1)
    with pytest.raises(InputError, match=r"^decoder_input_ids: .* at most 24 together, not 1 and 25 new ones"):
        model.generate(ids, 25)
    with pytest.raises(InputError, match=r"^decoder_input_ids: .* at most 24 together, not 5 and 21 new ones"):
        model.generate(ids, 21, decoder_input_ids=torch.full((1, 5), 5))
    with pytest.raises(InputError, match=r"^decoder_input_ids: token ids must be 0 to 255, not 256 to 256"):
        model(input_ids=ids, decoder_input_ids=torch.tensor([[256]]))
    assert model(input_ids=ids, decoder_input_ids=ids).logits.shape == (1, 24, VOCABULARY)


def test_A11_no_limits_where_positions_are_relative(load: Load) -> None:
    model = load(_t5, "reference")
    ids = torch.full((1, 700), 5)
    assert model(input_ids=ids, decoder_input_ids=torch.full((1, 30), 5)).logits.isfinite().all()


@pytest.mark.parametrize("layers", [True, False])
def test_A19_several_answers(load: Load, layers: bool) -> None:
    model = load(_llama, layers=layers)
    options = {"num_beams": 3, "num_return_sequences": 3, "do_sample": False}
    answers = model.generate("w5 w6", 5, **options)
    assert isinstance(answers, list)
    assert len(answers) == len(set(answers)) == 3
    ids = model.generate(model.encode("w5 w6").input_ids, 5, **options)
    assert answers == model.tokenizer.batch_decode(ids[:, 2:], skip_special_tokens=True)  # type: ignore[union-attr]
    both = model.generate(["w5 w6", "w7 w8"], 5, **options)
    assert both == answers + model.generate("w7 w8", 5, **options)


def test_A19_the_object_of_transformers(load: Load) -> None:
    model = load(_llama)
    result = model.generate("w5 w6", 3, do_sample=False, return_dict_in_generate=True, output_scores=True)
    assert result.sequences.shape == (1, 5)
    assert len(result.scores) == 3


@pytest.mark.parametrize("prompt", ["w5 w6", IDS], ids=["text", "ids"])
@pytest.mark.parametrize("name", ["output_scores", "output_logits", "output_attentions", "output_hidden_states"])
def test_A19_what_would_be_lost(load: Load, prompt: Any, name: str) -> None:
    with pytest.raises(InputError, match=rf"^{name}: must have return_dict_in_generate=True"):
        load(_llama, "cpu").generate(prompt, 3, **{name: True})


def test_A19_another_limit(load: Load) -> None:
    with pytest.raises(InputError, match=r"^max_length: must be left out"):
        load(_llama, "cpu").generate("w5", max_length=9)


@pytest.mark.parametrize(("length", "new"), [(20, 14), (33, 1), (5, 200)])
@pytest.mark.parametrize("device", ["reference", "emulator"])
def test_B5_longer_than_the_context(load: Load, device: str, length: int, new: int) -> None:
    model = load(_llama, device, context=32, max_position_embeddings=512)
    computed: list[object] = []
    decoder: Any = model._decoder()
    decoder.prefill = lambda *a, **k: computed.append(a)
    for prompt in (_words(length), torch.full((1, length), 5)):
        with pytest.raises(
            InputError, match=rf"^prompt: .* 32 together, not {length} and {new} .* context={length + new}"
        ):
            model.generate(prompt, new)
    assert not computed


def test_B5_up_to_the_context(load: Load) -> None:
    model = load(_llama, context=32, sequences=2, max_position_embeddings=512)
    wide = load(_llama, max_position_embeddings=512)
    ids = torch.full((1, 20), 5)
    full = model.generate(ids, 13, min_new_tokens=13, do_sample=False)
    assert full.shape == (1, 33)
    assert torch.equal(full, wide.generate(ids, 13, min_new_tokens=13, do_sample=False))
    padded = torch.cat([torch.zeros(1, 10, dtype=torch.long), ids], 1)
    mask = (padded > 0).long()
    answer = model.generate(padded, 13, min_new_tokens=13, do_sample=False, attention_mask=mask)
    assert torch.equal(answer[:, 10:], full), "padding takes no room"


@pytest.mark.parametrize(
    "options", [{"do_sample": False}, {"num_beams": 2, "do_sample": False}], ids=["greedy", "beams"]
)
@pytest.mark.parametrize("device", ["reference", "emulator"])
def test_B6_more_texts_than_caches(load: Load, device: str, options: dict[str, Any]) -> None:
    """Texts wait for their turn, and get the same answers as on a device with more caches, or alone."""
    texts = [_words(2 + 3 * i % 7, 5 * i + 3) for i in range(7)]
    few, many = load(_llama, device, sequences=3), load(_llama, device, sequences=14)
    answers = few.generate(texts, 6, **options)
    assert answers == many.generate(texts, 6, **options)
    assert answers == [few.generate(text, 6, **options) for text in texts]


@pytest.mark.parametrize("options", [{"num_return_sequences": 4, "do_sample": True}, {"num_beams": 4}], ids=str)
def test_B6_answers_that_do_not_fit(load: Load, options: dict[str, Any]) -> None:
    model = load(_llama, sequences=3)
    for prompt in ("w5", ["w5", "w6"], IDS):
        with pytest.raises(InputError, match=r"^sequences: must be at least the 4 beams .* for 3; .* sequences=4"):
            model.generate(prompt, 4, **options)
    with pytest.raises(InputError, match=r"^prompt: must be at most 3 sequences at a time, .* not 4; .* sequences=4"):
        model.generate(IDS.expand(4, -1), 4)
    with pytest.raises(InputError, match=r"^return_dict_in_generate: must be for prompts that fit .* 2 groups"):
        model.generate(["w5"] * 4, 4, return_dict_in_generate=True)


def test_B6_beams_of_the_models_own_settings(load: Load) -> None:
    model = load(_llama, sequences=3)
    model.module.generation_config.num_beams = 4  # type: ignore[reportAttributeAccessIssue]
    with pytest.raises(InputError, match=r"^sequences: must be at least the 4 beams"):
        model.generate("w5", 4)
    assert isinstance(model.generate("w5", 4, num_beams=1), str)


def _letters() -> PreTrainedTokenizerFast:
    """A tokenizer whose words are bytes; transformers looks for stop strings in such parts of words."""
    letters = sorted(ByteLevel.alphabet())[: VOCABULARY - 3]
    plain = Tokenizer(BPE({"<pad>": 0, "<s>": 1, "</s>": 2} | {c: i + 3 for i, c in enumerate(letters)}, []))
    plain.pre_tokenizer, plain.decoder = ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=plain, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


@pytest.mark.parametrize("device", ["cpu", "emulator"])
@pytest.mark.parametrize("own", [True, False])
def test_B7_stop_strings(load: Load, device: str, own: bool) -> None:
    model = load(_llama, device)
    model.tokenizer = _letters()
    text = model.generate("w5 w6", 12, do_sample=False)
    options: dict[str, Any] = {"do_sample": False, "stop_strings": [text[3]]}
    given = model.encode("w5 w6")
    generate: Any = model.module.generate
    ids = generate(**given, max_new_tokens=12, tokenizer=model.tokenizer, **options)
    expected = model.tokenizer.decode(ids[0, 5:], skip_special_tokens=True)
    assert text.startswith(expected)
    assert 0 < len(expected) < len(text)
    if not own:
        options["tokenizer"] = model.tokenizer
    assert model.generate("w5 w6", 12, **options) == expected
    assert "".join(model.generate("w5 w6", 12, stream=True, **options)) == expected


@pytest.mark.parametrize("layers", [True, False])
@pytest.mark.parametrize(
    "ids",
    [[5, 6], [[5, 6]], torch.tensor([5, 6]), torch.tensor(5), torch.tensor([[5.0, 6.0]]), torch.ones(1, 2, 2).long(),
     torch.tensor([[True]]), torch.tensor([[5, 256]]), torch.tensor([[-1]])],
    ids=repr,
)  # fmt: skip
def test_B9_A17_ids_of_forward(load: Load, layers: bool, ids: Any) -> None:
    if not layers and isinstance(ids, torch.Tensor) and ids.ndim == 3:
        pytest.skip("some models of transformers take choices or codebooks")
    model = load(_llama, "reference", layers=layers)
    for call in (lambda: model(ids), lambda: model(input_ids=ids)):
        with pytest.raises(InputError, match=r"^input_ids: "):
            call()


@pytest.mark.parametrize("dtype", [torch.int32, torch.int64])
def test_B9_ids_that_transformers_takes(load: Load, dtype: torch.dtype) -> None:
    assert load(_llama, "reference")(IDS.to(dtype)).logits.shape == (1, 9, VOCABULARY)


@pytest.mark.parametrize(
    "prompt",
    [[5, 6], [[5, 6]], torch.tensor([5, 6]), torch.tensor([[5.0]]), torch.tensor([[True]]), None, []],
    ids=repr,
)
def test_B9_prompts(load: Load, prompt: Any) -> None:
    with pytest.raises(InputError, match=r"^prompt: must (be a text or several|have token ids \[B, [ST]\]), not "):
        load(_llama, "reference").generate(prompt, 4)


@pytest.mark.parametrize("value", [0, -1, 1.5, True, "5", None], ids=repr)
def test_A17_new_tokens_are_a_number(load: Load, value: Any) -> None:
    with pytest.raises(InputError, match=rf"^max_new_tokens: must be a whole number from 1, not {value!r}$"):
        load(_llama, "cpu").generate("w5", value)


def _roberta() -> PreTrainedModel:
    return RobertaModel(
        RobertaConfig(
            vocab_size=VOCABULARY,
            hidden_size=64,
            num_hidden_layers=1,
            num_attention_heads=4,
            intermediate_size=96,
            max_position_embeddings=34,
            pad_token_id=1,
        )
    )


def _choices() -> PreTrainedModel:
    return RobertaForMultipleChoice(_roberta().config)


@pytest.mark.parametrize("layers", [True, False])
def test_B9_positions_kept_for_padding(load: Load, layers: bool) -> None:
    model = load(_roberta, "reference", layers=layers)
    assert model(input_ids=torch.full((1, 32), 5)).last_hidden_state.shape == (1, 32, 64)
    with pytest.raises(InputError, match=r"^input_ids: tokens must be at most 32, not 33"):
        model(input_ids=torch.full((1, 33), 5))


@pytest.mark.parametrize("kind", ["dynamic", "linear"])
def test_B9_scaled_rotary_positions_go_on(load: Load, kind: str) -> None:
    parameters = {"rope_type": kind, "rope_theta": 10_000.0, "factor": 4.0}
    model = load(_llama, "reference", layers=False, rope_parameters=parameters)
    ids = torch.randint(3, VOCABULARY, (1, 100), generator=torch.Generator().manual_seed(1))
    exact = build(_llama, rope_parameters=parameters)(input_ids=ids).logits
    logits = model(input_ids=ids).logits
    assert torch.nn.functional.cosine_similarity(logits, exact, dim=-1).min() > 0.98
    assert model.generate(ids, 4, do_sample=False).shape[1] > 100


def test_B9_choices(load: Load) -> None:
    """Several texts of an example are a dimension more."""
    model = load(_choices, "reference")
    ids = torch.randint(3, VOCABULARY, (2, 3, 9), generator=torch.Generator().manual_seed(1))
    exact = build(_choices)(input_ids=ids).logits
    assert torch.allclose(model(input_ids=ids).logits, exact, atol=0.02 * float(exact.abs().max()))


def test_B9_use_after_close(load: Load) -> None:
    model = load(_llama)
    model.close()
    for call in (lambda: model(IDS), lambda: model.generate(IDS, 2), lambda: model.save("nowhere")):
        with pytest.raises(InputError, match=r"^model: must be open, but is closed"):
            call()
    model.close()


def test_B10_template_that_raises(load: Load) -> None:
    model = load(_llama, "cpu")
    assert model.tokenizer is not None
    for template, what in (("{{ raise_exception('no users') }}", "TemplateError: no users"), ("{% if %}", "Syntax")):
        model.tokenizer.chat_template = template
        with pytest.raises(InputError, match=rf"^prompt: the model's chat template must .*{what}.*; pass chat=False"):
            model.generate("w5", 2)
        assert isinstance(model.generate("w5", 2, chat=False), str)


def test_B10_tokenizer_without_padding(load: Load) -> None:
    model = load(_llama, "cpu")
    assert model.tokenizer is not None
    model.tokenizer.pad_token = model.tokenizer.eos_token = None
    assert isinstance(model.generate("w5 w6", 2), str)
    assert len(model.generate(["w5"], 2)) == 1
    with pytest.raises(InputError, match=r"^tokenizer: must have a token for padding"):
        model.generate(["w5 w6", "w7"], 2)
    model.tokenizer.eos_token = "</s>"
    assert len(model.generate(["w5 w6", "w7"], 2)) == 2


def _generating() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "lepton-generate"]


_LONG = {"do_sample": False, "min_new_tokens": 60}


def test_B14_stream_that_nobody_holds(load: Load) -> None:
    stream = load(_llama).generate("w5", 60, stream=True, **_LONG)
    next(stream)
    (thread,) = _generating()
    ids = stream.token_ids
    del stream
    thread.join(60)
    assert not thread.is_alive()
    assert len(ids) < 60


def test_B14_model_closed_while_it_streams(load: Load) -> None:
    model = load(_llama)
    other = load(_llama)
    stream, going = (m.generate("w5", 60, stream=True, **_LONG) for m in (model, other))
    next(stream)
    model.close()
    assert stream.token_ids
    assert len(stream.token_ids) < 60
    list(stream)
    list(going)
    assert len(going.token_ids) == 60, "another model's stream goes on"
    assert not _generating()


def test_B14_stream_at_its_end(load: Load) -> None:
    stream = load(_llama).generate("w5", 3, do_sample=False, stream=True)
    assert "".join(stream)
    assert list(stream) == [] == list(stream)
    stream.close()


def test_B14_script_that_ends_while_a_stream_goes_on(folder: Path) -> None:
    script = (
        "import sys, lepton.ai as lai\n"
        "model = lai.load_model(sys.argv[1], 'emulator')\n"
        "stream = model.generate('w5', 60, stream=True, do_sample=False, min_new_tokens=60)\n"
        "next(stream)\n"
        "print('one piece', flush=True)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(folder)], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr
    assert result.stdout == "one piece\n"
    assert "Traceback" not in result.stderr
