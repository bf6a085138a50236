"""Lepton as a quantization method of transformers: load, generate, save in int8, load again, the same tokens.

python examples/plugin.py [FOLDER]
"""

import sys
import tempfile
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

import lepton.ai as lai
from lepton.models import resolve

PROMPT = "The three primary colors are"


def answer(model: PreTrainedModel, folder: Path) -> str:
    """A few words that the model adds to the prompt."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokens = model.generate(**tokenizer(PROMPT, return_tensors="pt"), max_new_tokens=8, do_sample=False)  # type: ignore[reportCallIssue]
    return tokenizer.decode(tokens[0])


def main() -> None:
    folder = Path(sys.argv[1]) if len(sys.argv) > 1 else resolve("smollm2-135m")
    settings = lai.LeptonConfig(device="emulator")
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=settings)
    before = answer(model, folder)
    print(before)
    with tempfile.TemporaryDirectory() as saved:
        model.save_pretrained(saved)  # int8 weights and their scales, safetensors
        reloaded = AutoModelForCausalLM.from_pretrained(saved)
        print("after saving and loading: the same" if answer(reloaded, folder) == before else "something else!")


if __name__ == "__main__":
    main()
