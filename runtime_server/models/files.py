"""Checksums, durable writes and room on disk."""

from __future__ import annotations

import errno
import hashlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from runtime_server.models.errors import PullError

CHUNK_BYTES = 1 << 20
SPARE_BYTES = 64 << 20
"""Left free on the disk beyond what a pull needs."""

_FULL = {errno.ENOSPC, errno.EDQUOT}


def sha256(path: Path) -> str:
    """The file's checksum in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def copy_with_sha256(source: IO[bytes], target: Path) -> str:
    """Writes ``source`` to ``target``, durably, and returns its checksum."""
    digest = hashlib.sha256()
    with target.open("wb") as file:
        while chunk := source.read(CHUNK_BYTES):
            file.write(chunk)
            digest.update(chunk)
        file.flush()
        os.fsync(file.fileno())
    return digest.hexdigest()


def sync_folder(folder: Path) -> None:
    """Makes the files in ``folder`` and their names survive a power cut."""
    for path in [*folder.iterdir(), folder]:
        sync(path)


def sync(path: Path) -> None:
    """Makes a file, or the names in a folder, survive a power cut."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def remove_tree(folder: Path) -> None:
    """Removes ``folder`` where it exists."""
    if folder.exists():
        shutil.rmtree(folder)


def check_space(folder: Path, needed_bytes: int) -> None:
    """Raises :class:`PullError` where the disk of ``folder`` has not ``needed_bytes`` and some to spare."""
    while not folder.exists():
        folder = folder.parent
    free = shutil.disk_usage(folder).free
    if free < needed_bytes + SPARE_BYTES:
        raise PullError(
            f"The disk is too full: {_mb(needed_bytes + SPARE_BYTES)} are needed, {_mb(free)} are free.",
            hint="free some space or set MANTLER_HOME to a folder on another disk",
        )


def is_disk_full(error: OSError) -> bool:
    """Whether ``error`` says that the disk, or this person's share of it, is full."""
    return error.errno in _FULL


@contextmanager
def clear_disk_errors() -> Iterator[None]:
    """Turns errors of the disk into :class:`PullError`."""
    try:
        yield
    except OSError as error:
        if is_disk_full(error):
            raise PullError(
                "The disk is full.", hint="free some space or set MANTLER_HOME to a folder on another disk"
            ) from error
        if error.errno is None:
            raise
        name = Path(str(error.filename)).name if error.filename else "a file"
        raise PullError(f"Cannot read or write {name}: {os.strerror(error.errno)}.") from error


def _mb(size: int) -> str:
    return f"{size / 1e6:,.0f} MB"
