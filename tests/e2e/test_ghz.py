"""A short load test of the real runtime with ghz, which learns the services through reflection."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Mesh

pytestmark = [pytest.mark.e2e, pytest.mark.model]

ROOT = Path(__file__).resolve().parents[2]
GHZ = ROOT / ".cache" / "bin" / "ghz"


def ghz() -> Path:
    """The pinned ghz, which ``make ghz`` puts there; skips without a Go toolchain to build it."""
    if not GHZ.exists():
        why = "`make ghz` has not built ghz" if shutil.which("go") else "there is no Go toolchain to build ghz with"
        pytest.skip(why)
    return GHZ


def load(runtime: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs ``make load`` without make."""
    command = [sys.executable, "bench/ghz/run.py", "--ghz", str(ghz()), "--runtime", runtime, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=100, check=False)


def test_a_short_load(mesh: Mesh) -> None:
    done = load(mesh.runtime, "--concurrency", "1", "4", "--rounds", "2")
    assert done.returncode == 0, done.stdout + done.stderr
    _, health, *streams = [line.split() for line in done.stdout.splitlines()]
    assert health[:3] == ["health", "2000", "0"]
    assert [" ".join(row[:6]) for row in streams] == ["generate, 1 at once 8 0", "generate, 4 at once 8 0"]
    assert all(float(row[7]) > 0 for row in streams), "tokens per second"


def test_failed_calls_fail_the_run(mesh: Mesh) -> None:
    done = load(mesh.runtime, "--concurrency", "1", "--model", "nonsense:1")
    assert done.returncode == 1
    assert "8 calls ended with NotFound" in done.stderr
    assert re.search(r"^generate, 1 at once +8 +8 ", done.stdout, re.MULTILINE)


def test_no_runtime_is_said() -> None:
    done = load("127.0.0.1:1", "--concurrency", "1")
    assert done.returncode == 1
    assert "ghz failed on health" in done.stderr
