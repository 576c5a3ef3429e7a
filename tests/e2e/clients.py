"""Other people's clients, each in an environment of its own under ``.cache/clients``, and running scripts there."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from tests.conftest import ROOT

_FOLDER = ROOT / ".cache" / "clients"
INSTALL_S = 110.0
RUN_S = 100.0


def python_with(name: str, *requirements: str) -> Path:
    """The interpreter of the virtual environment ``name``, made the first time and whenever the requirements change.

    Args:
        name: of its folder.
        requirements: as pip takes them.
    """
    return _kept(name, requirements, _install_python) / "bin" / "python"


def node_with(name: str, *requirements: str) -> Path:
    """The folder ``name`` with a ``node_modules``, made as :func:`python_with` makes its environment.

    Args:
        name: of the folder.
        requirements: as npm takes them.
    """
    if shutil.which("npm") is None:
        pytest.skip("needs Node.js and npm, which are not here")
    return _kept(name, requirements, _install_node)


def run_python(python: Path, script: Path, given: dict[str, str]) -> dict[str, Any]:
    """What a script prints as JSON, with ``given`` as its argument."""
    return _printed([str(python), str(script), json.dumps(given)])


def run_node(folder: Path, script: Path, given: dict[str, str]) -> dict[str, Any]:
    """What a script prints as JSON, with ``given`` as its argument."""
    # Node looks for packages beside the script.
    return _printed(["node", str(shutil.copy(script, folder)), json.dumps(given)])


def _kept(name: str, requirements: tuple[str, ...], install: Callable[[Path, tuple[str, ...]], None]) -> Path:
    folder, wanted = _FOLDER / name, "\n".join(requirements)
    # Written last, so that an installation that was cut short begins anew.
    stamp = folder / "requirements"
    _FOLDER.mkdir(parents=True, exist_ok=True)
    with FileLock(_FOLDER / f"{name}.lock", timeout=INSTALL_S):
        if not stamp.is_file() or stamp.read_text() != wanted:
            shutil.rmtree(folder, ignore_errors=True)
            folder.mkdir()
            install(folder, requirements)
            stamp.write_text(wanted)
    return folder


def _install_python(folder: Path, requirements: tuple[str, ...]) -> None:
    venv.create(folder, with_pip=False, symlinks=True)
    pip = [sys.executable, "-m", "pip", "--python", str(folder / "bin" / "python")]
    _fetch([*pip, "install", "--quiet", *requirements], folder)


def _install_node(folder: Path, requirements: tuple[str, ...]) -> None:
    (folder / "package.json").write_text('{"private": true}\n')
    _fetch(["npm", "install", "--no-audit", "--no-fund", *requirements], folder)


def _fetch(command: list[str], folder: Path) -> None:
    """Runs an installer. Skips the test where it fails, except in CI, where a package index is known to be there."""
    try:
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=INSTALL_S, check=False)
    except subprocess.TimeoutExpired as error:
        problem = str(error)
    else:
        if done.returncode == 0:
            return
        problem = done.stderr
    give_up = pytest.fail if os.environ.get("CI") else pytest.skip
    give_up(f"{command[-1]} could not be installed: {problem}")


def _printed(command: list[str]) -> dict[str, Any]:
    done = subprocess.run(command, capture_output=True, text=True, timeout=RUN_S, check=False)
    assert done.returncode == 0, done.stderr
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed
