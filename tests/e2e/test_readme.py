"""The examples of README and docs/grpc.md, run as printed but for the ports."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.e2e.conftest import Mesh

pytestmark = [pytest.mark.e2e, pytest.mark.model]

ROOT = Path(__file__).resolve().parents[2]
PAGES = ("README.md", "docs/grpc.md")
TOOLS = ("curl", "grpcurl", "buf")
MACHINE = "127.0.0.1:50051"
NOT_RUN = "LoadModel"
"""It would download another model."""


def examples() -> list[tuple[str, str]]:
    """What runs an example, and its text."""
    found = []
    for page in PAGES:
        for language, text in re.findall(r"^```(\w+)\n(.*?)^```$", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE):
            tool = "python" if language == "python" else text.split()[0]
            if tool in ("python", *TOOLS) and NOT_RUN not in text:
                found.append((tool, text))
    return found


@pytest.mark.parametrize(("tool", "text"), examples())
def test_an_example_answers(tool: str, text: str, mesh: Mesh, tmp_path: Path) -> None:
    here = Path(sys.executable).parent
    path = os.pathsep.join([str(here), os.environ["PATH"]])
    if shutil.which(tool, path=path) is None and tool != "python":
        pytest.skip(f"{tool} is not installed here")
    ours = text
    for usual, here_at in {"127.0.0.1:8080": mesh.http, "127.0.0.1:50050": mesh.grpc, MACHINE: mesh.runtime}.items():
        ours = ours.replace(usual, here_at)
    assert ours != text
    command = [sys.executable, "-c", ours] if tool == "python" else ["bash", "-ec", ours]
    # In a folder of its own, as a reader would: nothing of this checkout is found by its relative path.
    environment = {**os.environ, "PATH": path, "PYTHONPATH": str(ROOT), "MANTLER_KEY": mesh.key}
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr
    # The model's greedy answer is about it; single tokens are part of the word.
    assert ("light" in done.stdout) if "lighthouse" in text else done.stdout.strip()


def test_every_kind_of_client_is_among_them() -> None:
    tools = [tool for tool, _ in examples()]
    assert set(tools) == {"python", *TOOLS}
    assert tools.count("python") == 4
