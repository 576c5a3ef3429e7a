"""Shows the progress of a pull on stderr: a bar in a terminal, a line for each tenth of a stage elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mantler.cli.terminal import human_bytes, note
from mantler.messages import LoadProgress, LoadStage


class PullProgress:
    """A context manager; :meth:`show` takes the reports.

    Args:
        model_id: what is pulled.
    """

    def __init__(self, model_id: str, console: Console | None = None) -> None:
        self._model_id = model_id
        console = console or Console(stderr=True)
        self._bar = (
            Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TimeRemainingColumn(),
                console=console,
                transient=True,
            )
            if console.is_terminal
            else None
        )
        self._stage: LoadStage | None = None
        self._task: TaskID | None = None
        self._tenths = 0

    def __enter__(self) -> Self:
        if self._bar:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bar:
            self._bar.stop()

    def show(self, progress: LoadProgress) -> None:
        """Shows one report."""
        if progress.stage is not self._stage:
            self._stage = progress.stage
            self._begin(progress)
        if self._bar and self._task is not None:
            self._bar.update(
                self._task, completed=progress.completed_bytes, total=progress.total_bytes or None, refresh=False
            )
        elif self._bar is None and progress.total_bytes:
            self._tell_tenths(progress)

    def _tell_tenths(self, progress: LoadProgress) -> None:
        tenths = 10 * progress.completed_bytes // progress.total_bytes
        if tenths > self._tenths:
            self._tenths = tenths
            done, total = human_bytes(progress.completed_bytes), human_bytes(progress.total_bytes)
            note(f"{progress.stage.value} {self._model_id}: {10 * tenths} %, {done} of {total}")

    def _begin(self, progress: LoadProgress) -> None:
        text = f"{progress.stage.value} {self._model_id}"
        self._tenths = 0
        if self._bar is None:
            size = f" ({human_bytes(progress.total_bytes)})" if progress.total_bytes else ""
            note(f"{text}{size}")
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(text, total=None)
