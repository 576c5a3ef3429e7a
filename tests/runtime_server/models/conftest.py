from __future__ import annotations

from pathlib import Path

import pytest

from runtime_server.models.source import open_source
from runtime_server.models.tokenizer import Tokenizer
from runtime_server.models.vocabulary import StoredTemplate
from tests.default_model import default_gguf
from tests.runtime_server.models.pulling import LLAMA
from tests.tiny_models import write_gguf


@pytest.fixture(scope="session")
def smollm2_gguf() -> Path:
    """The default model's file."""
    return default_gguf()


@pytest.fixture(scope="session")
def smollm2_tokenizer(smollm2_gguf: Path, tmp_path_factory: pytest.TempPathFactory) -> Tokenizer:
    """The default model's tokenizer, stored and loaded again."""
    folder = tmp_path_factory.mktemp("tokenizer")
    open_source(smollm2_gguf).tokenizer.save(folder)
    return Tokenizer.load(folder)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """Where models are stored. Not there yet."""
    return tmp_path / "home"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    """The file of a model that takes no time."""
    return write_gguf(tmp_path / "Tiny.Q8_0.gguf", LLAMA)


@pytest.fixture(scope="session")
def smollm2_template(smollm2_tokenizer: Tokenizer) -> StoredTemplate:
    """The default model's chat template."""
    assert smollm2_tokenizer.template is not None
    return smollm2_tokenizer.template
