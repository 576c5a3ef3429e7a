"""What a measured process tells the benchmark: a JSON object per line of its standard output."""

from __future__ import annotations

import contextlib
import json
import os
import sys
from collections.abc import Iterator
from dataclasses import asdict
from typing import Any

from bench.gpu.figures import DecodeFigures, MixedFigures, UnmeasuredError

STDOUT = 1
Said = dict[str, Any]


@contextlib.contextmanager
def quiet_output() -> Iterator[None]:
    """Keeps what libraries print from Python out of the lines: it goes to standard error."""
    with contextlib.redirect_stdout(sys.stderr):
        yield


def say(kind: str, **values: object) -> None:
    """One line, past whatever has become of ``sys.stdout``."""
    os.write(STDOUT, (json.dumps({"said": kind, **values}) + "\n").encode())


def say_figures(figures: DecodeFigures | MixedFigures, name: str = "") -> None:
    """What was measured; ``name`` says of what, where one process measures several things."""
    say("decode" if isinstance(figures, DecodeFigures) else "mixed", name=name, figures=asdict(figures))


@contextlib.contextmanager
def or_absent(what: str, name: str = "") -> Iterator[None]:
    """Says why there are no figures of ``what``, where the block finds none."""
    try:
        yield
    except UnmeasuredError as error:
        say("absent", name=name, what=what, why=str(error))


def heard(line: str) -> Said | None:
    """The opposite of :func:`say`; ``None`` for a line that is something else."""
    try:
        value = json.loads(line)
    except json.JSONDecodeError:
        return None
    return value if isinstance(value, dict) and "said" in value else None
