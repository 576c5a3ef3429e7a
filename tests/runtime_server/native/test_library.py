"""Loading the compiled operators, and what is said where that fails."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mantler.errors import ErrorCode, MantlerError
from runtime_server import native


def fresh(monkeypatch: pytest.MonkeyPatch, library: Path) -> None:
    """Makes the next call look for ``library``."""
    monkeypatch.setattr(native, "LIBRARY", library)
    native.instruction_set.cache_clear()


def test_the_library_is_there_and_knows_its_processor() -> None:
    assert native.library().exists()
    assert native.instruction_set() in ("avx512_bf16", "avx512_vnni", "avx2", "baseline")


def test_a_missing_library_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    fresh(monkeypatch, tmp_path / "none.so")
    with pytest.raises(MantlerError, match="have not been compiled: install") as caught:
        native.library()
    assert caught.value.code is ErrorCode.INTERNAL_ERROR
    assert "none.so" in caplog.text


def test_a_library_for_another_machine_is_an_error_that_says_what_to_do(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other.so"
    other.write_bytes(b"\x7fELF of another machine")
    fresh(monkeypatch, other)
    with pytest.raises(MantlerError, match="were made for another machine: install"):
        native.library()


def test_an_instruction_set_that_is_not_there_is_refused() -> None:
    code = "from runtime_server import native; native.library()"
    done = subprocess.run(
        [sys.executable, "-c", code],
        env=os.environ | {native.ONE_SET: "avx1024"},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert "do not have the instruction set that MANTLER_INSTRUCTION_SET names" in done.stderr
