"""The protos are well formed, their stubs are current, and no change of them breaks a client."""

from __future__ import annotations

import io
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
BUF = shutil.which("buf", path=str(Path(sys.executable).parent)) or shutil.which("buf") or "buf"


def run(*command: str, cwd: Path = ROOT) -> subprocess.CompletedProcess[str]:
    """Runs a program and returns what it said."""
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=60, check=False)


def breaking_changes(before: Path) -> str:
    """What buf says about the change from the protos in ``before`` to ours; empty if nothing breaks."""
    done = run(BUF, "breaking", "--against", str(before))
    assert done.returncode in (0, 100), done.stderr  # 100 is buf's code for findings
    return done.stdout


def earlier_commit() -> str | None:
    """What clients know: the latest release that has protos, else the commit of main before this work."""
    tag = run("git", "describe", "--tags", "--abbrev=0").stdout.strip()
    head = run("git", "rev-parse", "HEAD").stdout.strip()
    fork = run("git", "merge-base", "HEAD", "origin/main").stdout.strip()
    before = run("git", "rev-parse", "--verify", "--quiet", "HEAD~1").stdout.strip()
    for commit in (tag, fork if fork != head else "", before):
        if commit and run("git", "ls-tree", commit, "--", "proto").stdout:
            return commit
    return None


def test_the_stubs_are_current(tmp_path: Path) -> None:
    done = run(sys.executable, "tools/gen_proto.py", "--out", str(tmp_path))
    assert done.returncode == 0, done.stderr
    made = {path.name: path.read_text() for path in (tmp_path / "mantler" / "v1").iterdir()}
    kept = {path.name: path.read_text() for path in (ROOT / "mantler" / "v1").glob("*_pb2*")}
    assert sorted(made) == sorted(kept), "run `make proto`"
    assert [name for name in made if made[name] != kept[name]] == [], "run `make proto`"


def test_buf_lint() -> None:
    done = run(BUF, "lint")
    assert done.returncode == 0, done.stdout + done.stderr


def test_buf_format() -> None:
    done = run(BUF, "format", "--diff", "--exit-code")
    assert done.returncode == 0, "run `make proto`\n" + done.stdout + done.stderr


def test_nothing_breaks_since_the_last_release(tmp_path: Path) -> None:
    commit = earlier_commit()
    if commit is None:
        pytest.skip("no earlier commit with protos to compare with")
    archive = subprocess.run(
        ["git", "archive", commit, "proto", "buf.yaml"], cwd=ROOT, capture_output=True, timeout=60, check=True
    ).stdout
    with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
        tar.extractall(tmp_path, filter="data")
    assert breaking_changes(tmp_path) == ""


def test_a_breaking_change_would_be_seen(tmp_path: Path) -> None:
    shutil.copy(ROOT / "buf.yaml", tmp_path)
    shutil.copytree(ROOT / "proto", tmp_path / "proto")
    file = tmp_path / "proto" / "mantler" / "v1" / "model.proto"
    file.write_text(
        file.read_text().replace("message UnloadModelResponse {}", "message UnloadModelResponse { string old = 1; }")
    )
    assert 'field "1" with name "old"' in breaking_changes(tmp_path)
