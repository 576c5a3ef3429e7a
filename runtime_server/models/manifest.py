"""``manifest.json``: what a stored model is and what it was made from."""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import TypeAdapter

from mantler import __version__
from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.errors import PullError
from runtime_server.models.shapes import check_config

MANIFEST_FILE = "manifest.json"
MODEL_FILE = "model.onnx"
WEIGHTS_SUFFIX = ".bin"
FORMAT_VERSION = 4
"""Counts changes after which a stored model must be converted again."""


@dataclass(frozen=True, slots=True)
class StoredFile:
    """One file of the model's folder."""

    sha256: str
    size_bytes: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """A stored model."""

    id: str
    source: str
    """Where it came from, as a person would write it."""
    source_format: str
    """``gguf`` or ``safetensors``."""
    source_sha256: Mapping[str, str]
    """Checksums of the files it was made from, by file name."""
    quantization: str
    parameter_count: int
    config: DecoderConfig
    files: Mapping[str, StoredFile]
    """Every other file of the folder, by name."""
    created_unix_s: int
    versions: Mapping[str, str]
    """Of the packages that made it."""
    format_version: int = FORMAT_VERSION

    @property
    def architecture(self) -> str:
        """For example ``llama``."""
        return self.config.architecture

    @property
    def context_length(self) -> int:
        """Tokens that the model was made for, prompt and output together."""
        return self.config.context_length

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        return sum(file.size_bytes for file in self.files.values())

    @property
    def weight_bytes(self) -> int:
        """Bytes of the weights on disk, which take as many in memory."""
        return sum(file.size_bytes for name, file in self.files.items() if name.endswith(WEIGHTS_SUFFIX))

    @property
    def fingerprint(self) -> str:
        """Changes with every file of the model."""
        digest = hashlib.sha256("".join(f"{n} {self.files[n].sha256}\n" for n in sorted(self.files)).encode())
        return f"fp_{digest.hexdigest()[:12]}"

    def to_json(self) -> str:
        """The text of ``manifest.json``."""
        return json.dumps(asdict(self), indent=1) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes) -> Manifest:
        """Reads :meth:`to_json`. Raises :class:`PullError` for damage and for other format versions."""
        try:
            data: dict[str, Any] = json.loads(text)
            if data["format_version"] != FORMAT_VERSION:
                raise PullError(
                    f"{data['id']} was converted by another version of Mantler.",
                    hint=f"pull it again: mantler pull {data['id']}",
                )
            manifest = _reader().validate_json(text, strict=True, extra="forbid")
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise PullError(f"{MANIFEST_FILE} is damaged.", hint="pull the model again") from error
        check_config(manifest.config)
        return manifest

    @classmethod
    def load(cls, folder: Path) -> Manifest:
        """The manifest in ``folder``, whose files are all there and as long as they should be.

        Raises ``FileNotFoundError`` where there is no manifest, and :class:`PullError` for a damaged model.
        """
        manifest = cls.from_json((folder / MANIFEST_FILE).read_bytes())
        for name, file in manifest.files.items():
            path = folder / name
            if not path.is_file() or path.stat().st_size != file.size_bytes:
                raise PullError(
                    f"{name} of {manifest.id} is {'damaged' if path.is_file() else 'missing'}.",
                    hint=f"pull it again, from {manifest.source}",
                )
        return manifest


@functools.cache
def _reader() -> TypeAdapter[Manifest]:
    return TypeAdapter(Manifest)


def package_versions() -> dict[str, str]:
    """Versions of what takes part in a conversion."""
    return {"mantler": __version__} | {name: version(name) for name in ("onnx", "gguf", "tokenizers", "numpy")}
