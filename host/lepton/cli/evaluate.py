"""Commands that measure quality. Modules that are slow to import are imported inside the commands that need them."""

from pathlib import Path
from typing import Annotated

import typer

from lepton.cli.common import ConfigOption, DeviceOption, JsonOption, ModelArgument, SkipOption, show
from lepton.errors import InputError

app = typer.Typer(
    help="Measure the quality of a model on a device, beside the same model in float32.", no_args_is_help=True
)

TextOption = Annotated[Path, typer.Option(help="File with the text.", exists=True, dir_okay=False, readable=True)]


@app.command()
def perplexity(
    model: ModelArgument,
    text: TextOption,
    device: DeviceOption = "emulator",
    tokens: Annotated[int, typer.Option(min=2, help="Tokens of the text to use.")] = 2048,
    config: ConfigOption = "sim",
    skip: SkipOption = None,
    json: JsonOption = False,
) -> None:
    """Compare the perplexity of a text on a device with that of the float32 model."""
    import lepton.ai as lai
    from lepton.bench.evaluate import PerplexityResult
    from lepton.bench.evaluate import perplexity as measure

    content = _read(text)
    with lai.load_model(model, device, config=config, skip=skip or ()) as loaded:
        offloaded = measure(loaded, content, tokens)
    with lai.load_model(model, "cpu") as loaded:
        result = PerplexityResult(offloaded, measure(loaded, content, tokens))
    line = f"{device}: {result.perplexity:.4f}   float32: {result.float32_perplexity:.4f}   ratio: {result.ratio:.5f}"
    show(result.to_dict(), line, as_json=json)


@app.command()
def similarity(
    model: ModelArgument,
    text: TextOption,
    device: DeviceOption = "emulator",
    sentences: Annotated[int, typer.Option(min=1, help="Sentences of the text to use.")] = 50,
    config: ConfigOption = "sim",
    skip: SkipOption = None,
    json: JsonOption = False,
) -> None:
    """Compare the embeddings of sentences on a device with those of the float32 model: cosines."""
    import lepton.ai as lai
    from lepton.bench.evaluate import SimilarityResult
    from lepton.bench.evaluate import sentences as split
    from lepton.bench.evaluate import similarity as measure

    texts = split(_read(text), sentences)
    with lai.load_model(model, device, config=config, skip=skip or ()) as loaded:
        with lai.load_model(model, "cpu") as float32:
            result = SimilarityResult(tuple(measure(loaded, float32, texts)))
    line = f"{device}, cosine to float32: mean {result.mean:.5f}   minimum {result.minimum:.5f}"
    show(result.to_dict(), line, as_json=json)


def _read(text: Path) -> str:
    try:
        return text.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise InputError(f"text '{text}': must be UTF-8, but is not ({error.reason}); convert it") from error
