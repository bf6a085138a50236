"""Follow one weight from its checkpoint to the flip-flop that holds it, and one token from prompt to text.

python examples/follow.py

The ten-minute page of the documentation quotes what this prints.
"""

import torch
from safetensors import safe_open

import lepton.ai as lai
from lepton.models import resolve
from lepton_hw.config import get_config
from lepton_hw.layout import PARAMETER_BEATS, block_beats, pack_weights, words_of
from lepton_hw.numerics import quantize_rows, quantize_weights

MODEL, PROMPT = "smollm2-135m", "What is gravity?"
WEIGHT, N, K = "model.layers.0.self_attn.q_proj.weight", 21, 100


def follow_a_weight() -> None:
    with safe_open(resolve(MODEL) / "model.safetensors", "pt") as checkpoint:
        w = checkpoint.get_tensor(WEIGHT).float().numpy()  # [N, K]
    print(f"checkpoint   {WEIGHT}[{N}, {K}] = {w[N, K]:.7f}")

    weights = quantize_weights(w)
    q, scale = int(weights.q[N, K]), float(weights.scale[N])
    print(f"quantized    {q} of -127 to 127, times the channel's scale {scale:.7f} = {q * scale:.7f}")

    config = get_config("sim")
    size = config.array_size
    (block, column), (tile, row) = divmod(N, size), divmod(K, size)
    beats = block_beats(config, words_of(config, w.shape[1]), scaled=True, bias=False)
    beat = block * beats + PARAMETER_BEATS + tile * size + row
    stream = pack_weights(config, weights.q, weights.scale)
    byte = int(stream[beat * config.beat_bytes + column :][:1].view("int8")[0])
    print(f"in memory    beat {beat}: block {block}, tile {tile}, row {row}; in it byte {column} of {size}: {byte}")
    print(f"in hardware  column {column}, row {row}: register active_{row} of a chain of {size} cells")


def follow_a_token() -> None:
    with lai.load_model(MODEL, device="emulator") as model:
        assert model.tokenizer is not None
        ids = model.encode(PROMPT).input_ids  # [1, T]
        print(f"prompt       {PROMPT!r} in the chat template: {ids.shape[1]} tokens")
        x = model.module.get_input_embeddings()(ids[:, -1])[0]  # type: ignore[reportCallIssue]  # [hidden]
        rows = quantize_rows(x[None].numpy(force=True))
        shifts = "".join(map(str, rows.shift[0]))
        print(f"embedding    {len(x)} float32 of the last token; as int8 with the shifts {shifts}")
        logits = model.forward(ids).logits[0, -1]  # [vocabulary]
        likely = torch.softmax(logits, -1).topk(3)
        pairs = zip(likely.indices.tolist(), likely.values.tolist(), strict=True)
        words = [f"{model.tokenizer.decode(token)!r} {chance:.3f}" for token, chance in pairs]
        print(f"logits       {len(logits)}; most likely {', '.join(words)}")
        print(f"text         {model.generate(PROMPT, 8, do_sample=False)!r}")


if __name__ == "__main__":
    follow_a_weight()
    follow_a_token()
