"""Weights in safetensors files: one file, or several with an index. The format: https://huggingface.co/docs/safetensors"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import ml_dtypes  # noqa: F401  # teaches numpy bfloat16, which safetensors then hands out
import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open

from runtime_server.models.errors import PullError
from runtime_server.models.json_file import JsonFile
from runtime_server.models.shapes import Shape

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
DTYPES = ("F32", "F16", "BF16")


@dataclass(frozen=True, slots=True)
class _Entry:
    path: Path
    key: str
    shape: Shape


class SafetensorsFiles:
    """The tensors of a folder.

    Attributes:
        files: the safetensors files and their index.
        shapes: every tensor's shape by name.

    Raises:
        PullError: a file is missing, cut off or damaged, or has numbers of an unsupported kind.
    """

    def __init__(self, folder: Path) -> None:
        index_file = folder / INDEX_FILE
        if index_file.exists():
            parts = set(JsonFile.need(index_file).need_value("weight_map", dict).values())
            if not all(isinstance(part, str) and Path(part).name == part for part in parts):
                raise PullError(f"{INDEX_FILE} names files outside of its folder.")
            shards = [folder / part for part in sorted(parts)]
            self.files: tuple[Path, ...] = (index_file, *shards)
        else:
            shards = [folder / SINGLE_FILE]
            self.files = tuple(shards)
        self._entries: dict[str, _Entry] = {}
        for shard in shards:
            for entry in _read_header(shard):
                if self._entries.setdefault(entry.key, entry) is not entry:
                    raise PullError(f"{shard.name} holds {entry.key!r}, which another file holds too.")
        self.shapes = {name: entry.shape for name, entry in self._entries.items()}

    def renamed(self, names: Mapping[str, str]) -> SafetensorsWeights:
        """The tensors as weights; ``names`` leads from our names to the files'."""
        return SafetensorsWeights({ours: self._entries[theirs] for ours, theirs in names.items()})


class SafetensorsWeights:
    """Reads one weight at a time."""

    def __init__(self, entries: Mapping[str, _Entry]) -> None:
        self._entries = entries

    def load(self, name: str) -> NDArray[np.float32]:
        """The weight in fp32. Raises ``KeyError`` for an unknown name, ``PullError`` where it holds NaN or infinity."""
        entry = self._entries[name]
        with safe_open(entry.path, framework="numpy") as file:
            values: NDArray[np.float32] = file.get_tensor(entry.key).astype(np.float32)
        if not np.isfinite(values).all():
            raise PullError(f"The weight {name!r} holds values that are not numbers: the file is damaged.")
        return values


def _read_header(path: Path) -> list[_Entry]:
    """The tensors of one file. The package checks that they lie within it, without overlap."""
    if not path.is_file():
        raise PullError(f"{path.name} is missing.", hint="a model's weights must be safetensors")
    entries: list[_Entry] = []
    try:
        with safe_open(path, framework="numpy") as file:
            for key in file.keys():  # noqa: SIM118  # not a mapping
                view = file.get_slice(key)
                if view.get_dtype() not in DTYPES:
                    raise PullError(
                        f"{key!r} in {path.name} holds {view.get_dtype()} numbers.",
                        hint=f"supported: {', '.join(DTYPES)}",
                    )
                entries.append(_Entry(path, key, tuple(view.get_shape())))
    except SafetensorError as error:
        raise PullError(f"{path.name} is cut off or damaged.", hint="get the file again") from error
    return entries
