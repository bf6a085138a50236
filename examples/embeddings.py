"""Sentences as vectors: which of a few answers is nearest to a question, by an encoder on the emulated accelerator.

python examples/embeddings.py
"""

import torch

import lepton.ai as lai

QUESTION = "How do I reset my password?"
ANSWERS = (
    "Click on 'Forgot password' and follow the link in the mail.",
    "We are open from nine to five, except on Sundays.",
    "The parcel usually arrives within three days.",
)


def embed(model: lai.LeptonModel, texts: tuple[str, ...]) -> torch.Tensor:
    """Unit vectors [N, hidden]: the mean of the hidden states of each text's tokens."""
    assert model.tokenizer is not None
    inputs = model.tokenizer(list(texts), padding=True, return_tensors="pt")
    hidden = model.forward(**inputs).last_hidden_state  # [N, T, hidden]
    mask = inputs["attention_mask"][..., None]  # [N, T, 1]
    return torch.nn.functional.normalize((hidden * mask).sum(1) / mask.sum(1), dim=-1)


def main() -> None:
    with lai.load_model("minilm-l6-v2", device="emulator") as model:
        question, *answers = embed(model, (QUESTION, *ANSWERS))
        print(QUESTION)
        for answer, vector in zip(ANSWERS, answers, strict=True):
            print(f"{float(question @ vector):6.3f}  {answer}")


if __name__ == "__main__":
    main()
