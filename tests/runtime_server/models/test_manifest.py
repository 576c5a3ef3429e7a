"""What is read back is what was written, or is refused in words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from runtime_server.models.errors import PullError
from runtime_server.models.manifest import Manifest, StoredFile
from tests.tiny_models import tiny_config

MANIFEST = Manifest(
    id="tiny:latest",
    source="hf:Org/Tiny",
    source_format="safetensors",
    source_sha256={"model.safetensors": "ab"},
    quantization="int8",
    parameter_count=5,
    config=tiny_config("qwen3"),
    files={"model.onnx": StoredFile("cd", 7)},
    created_unix_s=1_800_000_000,
    versions={"onnx": "1.23"},
)


def test_a_manifest_survives() -> None:
    assert Manifest.from_json(MANIFEST.to_json()) == MANIFEST


@pytest.mark.parametrize(
    "change",
    [
        {"id": 5},
        {"parameter_count": "many"},
        {"created_unix_s": None},
        {"files": {"model.onnx": {"sha256": "cd", "size_bytes": "7"}}},
        {"files": ["model.onnx"]},
        {"config": {**json.loads(MANIFEST.to_json())["config"], "layers": 2.5}},
        {"config": {**json.loads(MANIFEST.to_json())["config"], "rope_inv_freq": "0.5"}},
        {"config": None},
        {"surprise": 1},
    ],
    ids=repr,
)
def test_wrong_types_are_damage(change: dict[str, Any]) -> None:
    text = json.dumps({**json.loads(MANIFEST.to_json()), **change})
    with pytest.raises(PullError, match=r"manifest\.json is damaged"):
        Manifest.from_json(text)


@pytest.mark.parametrize(
    "change", [{"layers": 0}, {"head_dim": 24}, {"head_dim": 512}, {"context_length": 10**30}], ids=repr
)
def test_sizes_that_cannot_run_are_refused(change: dict[str, int]) -> None:
    data = json.loads(MANIFEST.to_json())
    data["config"] |= change
    with pytest.raises(PullError, match=next(iter(change)).split("_")[0]):
        Manifest.from_json(json.dumps(data))
