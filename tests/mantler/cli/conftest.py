"""Runs the command in this process or as a child, in a home of its own."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from mantler.cli.main import run


@dataclass(frozen=True)
class Result:
    """What a command left behind."""

    code: int
    out: str
    err: str


Mantler = Callable[..., Result]


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty home, and none of our variables in the environment."""
    for name in [name for name in os.environ if name.startswith("MANTLER_")]:
        monkeypatch.delenv(name)
    folder = tmp_path / "home"
    monkeypatch.setenv("MANTLER_HOME", str(folder))
    return folder


@pytest.fixture
def mantler(capsys: pytest.CaptureFixture[str]) -> Iterator[Mantler]:
    """Calls the command in this process."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level

    def call(*arguments: str) -> Result:
        try:
            code = run(list(arguments))
        except SystemExit as exit_:
            code = exit_.code if isinstance(exit_.code, int) else 1
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    yield call
    root.handlers[:] = handlers
    root.setLevel(level)
