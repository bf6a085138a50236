"""A language model answers on the emulated accelerator.

python examples/generate.py "Name three planets."

Any registered name (`lepton models list`), Hugging Face folder or .gguf file does for ``--model``.
"""

import argparse

import lepton.ai as lai


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("prompt", nargs="?", default="Why is the sky blue?")
    parser.add_argument("--model", default="smollm2-135m")
    parser.add_argument("--device", default="emulator", help="cpu, reference, emulator or rtl")
    parser.add_argument("--tokens", type=int, default=64)
    options = parser.parse_args()

    with lai.load_model(options.model, device=options.device) as model:
        print(model.explain().summary)
        for piece in model.generate(options.prompt, options.tokens, do_sample=False, stream=True):
            print(piece, end="", flush=True)
        print()


if __name__ == "__main__":
    main()
