from pathlib import Path

import pytest

from runtime_server.models.catalogue import CATALOGUE
from runtime_server.models.errors import PullError
from runtime_server.models.known import CATALOGUE_CONFIGS, known
from runtime_server.models.manifest import Manifest
from runtime_server.models.pull import pull
from runtime_server.models.shapes import check_config, parameter_count
from runtime_server.models.store import ModelStore
from tests.tiny_models import tiny_config, write_gguf


def test_every_model_of_the_catalogue_has_a_shape() -> None:
    assert set(CATALOGUE_CONFIGS) == set(CATALOGUE)
    for config in CATALOGUE_CONFIGS.values():
        check_config(config)


@pytest.mark.parametrize(
    ("model", "millions"),
    [
        ("smollm2:135m", 134.5),
        ("smollm2:360m", 361.8),
        ("smollm2:1.7b", 1711.4),
        ("qwen2.5:0.5b", 494.0),
        ("qwen3:0.6b", 596.0),
    ],
)
def test_shapes_have_as_many_weights_as_their_makers_say(model: str, millions: float) -> None:
    assert parameter_count(CATALOGUE_CONFIGS[model]) / 1e6 == pytest.approx(millions, abs=0.1)


@pytest.mark.model
def test_the_default_model_is_what_the_catalogue_says(model_manifest: Manifest) -> None:
    ours, stored = CATALOGUE_CONFIGS[model_manifest.id], model_manifest.config
    assert parameter_count(ours) == parameter_count(stored)
    assert (ours.layers, ours.kv_heads, ours.head_dim) == (stored.layers, stored.kv_heads, stored.head_dim)
    assert ours.context_length == stored.context_length
    assert ours.rope_inv_freq == pytest.approx(stored.rope_inv_freq)


def test_a_stored_model_is_known_with_its_weights(tmp_path: Path) -> None:
    file = write_gguf(tmp_path / "tiny.gguf", tiny_config("llama"))
    store = ModelStore(tmp_path / "models")
    unstored = known(str(file), store)
    assert (unstored.config, unstored.weight_bytes) == (tiny_config("llama"), None)
    manifest = pull(str(file), tmp_path)
    found = known("Tiny", store)
    assert (found.name, found.config, found.quantization) == (manifest.id, manifest.config, "int8")
    assert found.weight_bytes == manifest.weight_bytes > 0


def test_repositories_are_known_from_the_catalogue_only(tmp_path: Path) -> None:
    store = ModelStore(tmp_path)
    assert known("hf:Qwen/Qwen3-0.6B", store).name == "qwen3:0.6b"
    with pytest.raises(PullError, match="shape of hf:some/model is not known"):
        known("hf:some/model", store)
    with pytest.raises(PullError, match="No model is called"):
        known("nothing:such", store)
