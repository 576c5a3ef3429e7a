"""A model as its makers publish it, read into what a conversion needs."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from runtime_server.models.decoder import DecoderConfig, Weights
from runtime_server.models.vocabulary import TokenizerData


@dataclass(frozen=True, slots=True)
class ModelSource:
    """An opened model file or folder."""

    format: str
    """``gguf`` or ``safetensors``."""
    config: DecoderConfig
    weights: Weights
    tokenizer: TokenizerData
    files: tuple[Path, ...]
    """What was read, for checksums."""


def open_source(path: Path) -> ModelSource:
    """Opens a ``.gguf`` file or a Hugging Face folder. Raises :class:`~runtime_server.models.errors.PullError`."""
    # Imported here because each brings a package that only its own format needs.
    if path.is_dir():
        from runtime_server.models.hf_source import open_folder

        return open_folder(path)
    from runtime_server.models.gguf_source import open_gguf

    return open_gguf(path)
