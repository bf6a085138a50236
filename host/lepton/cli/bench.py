"""Commands that measure speed."""

import statistics
import time
from typing import Annotated

import typer

from .bench_hardware import gemm, simulation
from .bench_layers import attention, encoder, layer
from .common import ConfigOption, DeviceOption, JsonOption, ModelArgument, SkipOption, print_json

app = typer.Typer(help="Measure speed.", no_args_is_help=True)
app.command()(gemm)
app.command()(simulation)
app.command()(layer)
app.command()(encoder)
app.command()(attention)

_PROMPT = "What is gravity?"


@app.command()
def decode(
    model: ModelArgument,
    device: DeviceOption = "emulator",
    config: ConfigOption = "sim",
    skip: SkipOption = None,
    tokens: Annotated[int, typer.Option(min=2, help="Tokens to generate in a repeat.")] = 32,
    repeats: Annotated[int, typer.Option(min=1, help="Repeats of each model, alternating.")] = 5,
    json: JsonOption = False,
) -> None:
    """Compare the speed of greedy generation on a device with that of eager float32 PyTorch."""
    import lepton.ai as lai
    from lepton.progress import progress_bars

    def speed(loaded: lai.LeptonModel, new: int) -> float:
        prompt = loaded.encode(_PROMPT).input_ids
        start = time.perf_counter()
        loaded.generate(prompt, new, min_new_tokens=new, do_sample=False)
        return new / (time.perf_counter() - start)

    with (
        lai.load_model(model, device, config=config, skip=skip or ()) as offloaded,
        lai.load_model(model, "cpu") as float32,
    ):
        speeds: tuple[list[float], list[float]] = ([], [])
        with progress_bars() as progress:
            for repeat in progress.track(range(repeats + 1), description="Generating"):
                for loaded, results in zip((offloaded, float32), speeds, strict=True):
                    if repeat == 0:
                        speed(loaded, 2)
                    else:
                        results.append(speed(loaded, tokens))
    means = [statistics.mean(results) for results in speeds]
    deviations = [statistics.stdev(results) if repeats > 1 else 0.0 for results in speeds]
    ratios = [a / b for a, b in zip(*speeds, strict=True)]
    if json:
        print_json(
            {
                "tokens_per_second": means[0],
                "float32_tokens_per_second": means[1],
                "ratio": means[0] / means[1],
                "tokens_per_second_sd": deviations[0],
                "float32_tokens_per_second_sd": deviations[1],
                "ratio_sd": statistics.stdev(ratios) if repeats > 1 else 0.0,
            }
        )
    else:
        print(f"{device}: {means[0]:.2f} ± {deviations[0]:.2f} tokens/s")
        print(f"float32: {means[1]:.2f} ± {deviations[1]:.2f} tokens/s")
        print(f"ratio: {means[0] / means[1]:.3f}")
