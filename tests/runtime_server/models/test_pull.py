"""Pulling: a model is in the store whole or not at all."""

from __future__ import annotations

import errno
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import pytest

from mantler.messages import LoadProgress, LoadStage
from runtime_server.models import files
from runtime_server.models.errors import PullError
from runtime_server.models.manifest import Manifest
from runtime_server.models.names import ModelName
from runtime_server.models.pull import pull
from runtime_server.models.store import ModelStore
from runtime_server.models.tokenizer import Tokenizer
from tests.runtime_server.models.pulling import LLAMA, FakeBuilder, leftovers
from tests.tiny_models import tiny_config, write_folder

CHILD = Path(__file__).with_name("pull_child.py")


@pytest.mark.parametrize("architecture", ["llama", "mistral", "qwen2", "qwen3"])
def test_a_pulled_model_is_complete(tmp_path: Path, home: Path, architecture: str) -> None:
    folder = write_folder(tmp_path / "Tiny", tiny_config(architecture))
    reports: list[LoadProgress] = []
    manifest = pull(str(folder), home, progress=reports.append)
    store = ModelStore(home / "models")
    assert store.list() == (manifest,)
    assert store.get("tiny") == store.get("tiny:latest") == manifest
    expected = ["chat_template.jinja", "model.bin", "model.onnx", "tokenizer.json", "vocabulary.json"]
    assert sorted(manifest.files) == expected
    store.verify("tiny")
    assert manifest.config == tiny_config(architecture)
    assert manifest.source_sha256["model.safetensors"] == files.sha256(folder / "model.safetensors")
    assert Manifest.from_json(manifest.to_json()) == manifest
    assert Tokenizer.load(store.path("tiny")).encode("hello")
    assert {report.stage for report in reports} == {LoadStage.CONVERTING}
    assert len({report.total_bytes for report in reports}) == 1
    assert reports[-1].completed_bytes == reports[-1].total_bytes == 4 * manifest.parameter_count


def test_what_is_stored_is_not_made_again(home: Path, tiny: Path) -> None:
    builder = FakeBuilder()
    first = pull(str(tiny), home, builder=builder)
    assert first.id == "tiny:q8_0"
    assert pull(str(tiny), home, builder=builder) == first
    assert builder.calls == 1
    pull(str(tiny), home, builder=builder, force=True)
    pull(str(tiny), home, builder=builder, quantization="fp32")
    assert builder.calls == 3
    copy = tiny.with_name("copy.gguf")
    shutil.copy(tiny, copy)
    with pytest.raises(PullError, match="is in the store already"):
        pull(str(copy), home, as_name="tiny:q8_0", builder=builder, quantization="fp32")


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), PullError, "The disk is full"),
        (PermissionError(errno.EACCES, "denied", "/secret/place/file"), PullError, "Cannot read or write file: Perm"),
        (PullError("The weight is damaged."), PullError, "is damaged"),
        (KeyboardInterrupt(), KeyboardInterrupt, None),
    ],
)
def test_a_failure_leaves_nothing(
    home: Path, tiny: Path, error: BaseException, raised: type[BaseException], message: str | None
) -> None:
    with pytest.raises(raised, match=message):
        pull(str(tiny), home, builder=FakeBuilder(error))
    assert leftovers(home) == []
    assert pull(str(tiny), home, builder=FakeBuilder()).id == "tiny:q8_0"


def test_a_failed_replacement_keeps_the_old_model(home: Path, tiny: Path) -> None:
    old = pull(str(tiny), home, builder=FakeBuilder())
    with pytest.raises(PullError, match="disk is full"):
        pull(str(tiny), home, builder=FakeBuilder(OSError(errno.ENOSPC, "full")), force=True)
    store = ModelStore(home / "models")
    assert store.get(old.id) == old
    store.verify(old.id)


def test_a_replacement_cut_between_its_renames_is_undone(home: Path, tiny: Path) -> None:
    old = pull(str(tiny), home, builder=FakeBuilder())
    store = ModelStore(home / "models")
    name = ModelName.parse(old.id)
    store.path(old.id).rename(home / "models" / ".partial" / f"{name.file_stem}+old")
    with pytest.raises(PullError, match="damaged"):
        pull(str(tiny), home, builder=FakeBuilder(PullError("damaged")), force=True)
    assert store.get(old.id) == old


def test_a_full_disk_is_noticed_before_the_work(home: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=1_000_000))
    builder = FakeBuilder()
    with pytest.raises(PullError, match=r"disk is too full: .* are needed, 1 MB are free"):
        pull(str(tiny), home, builder=builder)
    assert builder.calls == 0
    assert leftovers(home) == []


def test_a_tokenizer_with_more_ids_than_the_model_is_refused(tmp_path: Path, home: Path) -> None:
    small = replace(LLAMA, vocab_size=LLAMA.vocab_size - 1)
    with pytest.raises(PullError, match="the model knows"):
        pull(str(write_folder(tmp_path / "m", small)), home, builder=FakeBuilder())


@contextmanager
def child(source: Path, home: Path) -> Iterator[subprocess.Popen[str]]:
    """A pull in another process that has come to half of its work."""
    command = [sys.executable, "-m", "tests.runtime_server.models.pull_child", str(source), str(home)]
    root = Path(__file__).parents[3]
    with subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == "building\n"
            yield process
        finally:
            process.kill()


def test_a_killed_pull_leaves_no_model_and_the_next_cleans_up(home: Path, tiny: Path) -> None:
    with child(tiny, home) as process:
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert ModelStore(home / "models").list() == ()
    assert leftovers(home)
    pull(str(tiny), home, as_name="tiny", builder=FakeBuilder())
    assert all(path.startswith("models/tiny/latest/") for path in leftovers(home))


def test_a_second_pull_waits_for_the_first(home: Path, tiny: Path) -> None:
    with child(tiny, home) as process:
        store = ModelStore(home / "models")
        with pytest.raises(PullError, match="Another process is pulling or removing tiny:latest"):
            pull(str(tiny), home, as_name="tiny", lock_timeout_s=0, builder=FakeBuilder())
        with pytest.raises(PullError, match="Another process"):
            store.remove("tiny")
        builder, notices = FakeBuilder(), []

        def let_go(text: str) -> None:
            notices.append(text)
            assert process.stdin is not None
            process.stdin.write("\n")
            process.stdin.flush()

        manifest = pull(str(tiny), home, as_name="tiny", notice=let_go, lock_timeout_s=60, builder=builder)
        assert process.wait(timeout=60) == 0
    assert notices == ["Another process is pulling or removing tiny:latest; waiting for it."]
    assert builder.calls == 0
    assert store.get("tiny") == manifest


@pytest.mark.model
def test_the_default_model_is_pulled_from_its_file(home: Path, smollm2_gguf: Path) -> None:
    manifest = pull(str(smollm2_gguf), home, as_name="smollm2:135m")
    assert (manifest.parameter_count, manifest.context_length) == (134_515_008, 8192)
    ModelStore(home / "models").verify("smollm2:135m")
