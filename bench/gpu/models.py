"""The models that are measured: a folder of random weights where none is given, and Mantler's conversions of it."""

from __future__ import annotations

import subprocess
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

from bench.gpu.random_model import write
from bench.gpu.shapes import SHAPES
from bench.peers import this_mantler
from bench.weights import PULL_TIMEOUT_S, environment
from runtime_server.models.names import ModelName, derive


def random_folder(shape: str, home: Path, console: Console) -> Path:
    """The Hugging Face folder of a shape below ``home``; made if it is not there. Raises ``PullError``."""
    folder = home / "random" / shape
    if not folder.exists():
        columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TimeRemainingColumn()
        with Progress(*columns, console=console) as bars:
            task = bars.add_task(f"random weights of {shape}", total=None)
            write(folder, SHAPES[shape], lambda done, total: bars.update(task, completed=done, total=total))
    return folder


def converted(folder: Path, quantization: str, home: Path) -> str:
    """The id of Mantler's conversion in the store below ``home``; pulled if it is not there.

    Raises ``CalledProcessError`` and ``TimeoutExpired``, after the pull has said on standard error what is wrong.
    """
    model_id = str(ModelName(derive(folder.name).name, quantization))
    command = [*this_mantler(), "pull", str(folder), "--as", model_id, "--quantization", quantization]
    subprocess.run(command, env=environment(home), check=True, timeout=PULL_TIMEOUT_S, stdout=subprocess.DEVNULL)
    return model_id
