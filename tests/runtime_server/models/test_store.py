"""What is in the store, and what is wrong with it."""

from __future__ import annotations

from pathlib import Path

import pytest

from runtime_server.models.errors import PullError
from runtime_server.models.manifest import FORMAT_VERSION
from runtime_server.models.pull import pull
from runtime_server.models.store import ModelStore
from tests.runtime_server.models.pulling import FakeBuilder, leftovers


def test_models_are_removed_whole(home: Path, tiny: Path) -> None:
    store = ModelStore(home / "models")
    pull(str(tiny), home, as_name="a:one", builder=FakeBuilder())
    pull(str(tiny), home, as_name="a:two", builder=FakeBuilder())
    store.remove("a:one")
    assert [manifest.id for manifest in store.list()] == ["a:two"]
    store.remove("a:two")
    assert leftovers(home) == []
    assert not (home / "models" / "a").exists()
    with pytest.raises(PullError, match="not in the store"):
        store.remove("a:two")
    with pytest.raises(PullError, match="not in the store"):
        store.verify("a:two")
    assert store.get("a:two") is None


def test_damage_and_other_formats_are_told(home: Path, tiny: Path, caplog: pytest.LogCaptureFixture) -> None:
    store = ModelStore(home / "models")
    pull(str(tiny), home, as_name="a", builder=FakeBuilder())
    (store.path("a") / "weights.bin").write_bytes(b"Weights")
    with pytest.raises(PullError, match=r"weights\.bin of a:latest is damaged"):
        store.verify("a")
    (store.path("a") / "model.onnx").unlink()
    with pytest.raises(PullError, match=r"model\.onnx of a:latest is missing"):
        store.verify("a")
    manifest = store.path("a") / "manifest.json"
    manifest.write_text(manifest.read_text().replace(f'"format_version": {FORMAT_VERSION}', '"format_version": 0'))
    with pytest.raises(PullError, match="another version of Mantler"):
        store.get("a")
    assert store.list() == ()
    assert "a:latest is left out" in caplog.text
    for rubbish in (b"{", b"[]", b"\xff\xfe{}", b""):
        manifest.write_bytes(rubbish)
        with pytest.raises(PullError, match=r"manifest\.json is damaged"):
            store.get("a")
    pull(str(tiny), home, as_name="a", builder=FakeBuilder())
    store.verify("a")


def test_a_file_that_was_cut_off_is_noticed_and_the_model_made_again(home: Path, tiny: Path) -> None:
    store = ModelStore(home / "models")
    pull(str(tiny), home, as_name="a", builder=FakeBuilder())
    (store.path("a") / "weights.bin").write_bytes(b"weigh")
    with pytest.raises(PullError, match=r"weights\.bin of a:latest is damaged"):
        store.get("a")
    assert store.list() == ()
    pull(str(tiny), home, as_name="a", builder=FakeBuilder())
    store.verify("a")
