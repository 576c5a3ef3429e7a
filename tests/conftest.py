"""What more than one package's tests share."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime_server.models.manifest import Manifest
from runtime_server.models.pull import pull
from runtime_server.models.store import ModelStore
from tests.default_model import DEFAULT_MODEL

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def model_home() -> Path:
    """A ``MANTLER_HOME`` that holds the default model. Fetched once and kept for later runs."""
    home = ROOT / ".cache" / "mantler"
    pull(DEFAULT_MODEL, home)
    return home


@pytest.fixture(scope="session")
def model_manifest(model_home: Path) -> Manifest:
    """The default model's manifest."""
    return Manifest.load(model_folder(model_home))


def model_folder(home: Path) -> Path:
    """Where the default model lies."""
    return ModelStore(home / "models").path(DEFAULT_MODEL)
