"""Shows the progress of loads on stderr: a bar for each in a terminal, a line for each tenth of a stage elsewhere."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from mantler.cli.terminal import human_bytes, note
from mantler.messages import LoadProgress, LoadStage


class LoadBars:
    """A context manager; :meth:`add` begins one more load, and :meth:`note` says something beside the bars."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console or Console(stderr=True)
        self._bars = (
            Progress(
                TextColumn("{task.description}", markup=False),
                BarColumn(),
                DownloadColumn(),
                TimeRemainingColumn(),
                console=self._console,
                transient=True,
            )
            if self._console.is_terminal
            else None
        )

    def __enter__(self) -> Self:
        if self._bars:
            self._bars.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._bars:
            self._bars.stop()

    def add(self, what: str) -> LoadBar:
        """Shows one more load, of ``what``."""
        return LoadBar(what, self._bars)

    def note(self, text: str) -> None:
        """A line that stays, above the bars."""
        if self._bars:
            self._console.print(text, markup=False, highlight=False, soft_wrap=True)
        else:
            note(text)


class LoadBar:
    """One load. :class:`LoadBars` makes it."""

    def __init__(self, what: str, bars: Progress | None) -> None:
        self._what = what
        self._bars = bars
        self._stage: LoadStage | None = None
        self._task: TaskID | None = None
        self._tenths = 0

    def show(self, progress: LoadProgress) -> None:
        """Shows one report."""
        if progress.stage is not self._stage:
            self._stage = progress.stage
            self._begin(progress)
        if self._bars and self._task is not None:
            self._bars.update(
                self._task, completed=progress.completed_bytes, total=progress.total_bytes or None, refresh=False
            )
        elif self._bars is None and progress.total_bytes:
            self._tell_tenths(progress)

    def end(self) -> None:
        """Takes the bar away."""
        if self._bars and self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None

    def _tell_tenths(self, progress: LoadProgress) -> None:
        tenths = 10 * progress.completed_bytes // progress.total_bytes
        if tenths > self._tenths:
            self._tenths = tenths
            done, total = human_bytes(progress.completed_bytes), human_bytes(progress.total_bytes)
            note(f"{progress.stage.value} {self._what}: {10 * tenths} %, {done} of {total}")

    def _begin(self, progress: LoadProgress) -> None:
        text = f"{progress.stage.value} {self._what}"
        self._tenths = 0
        if self._bars is None:
            size = f" ({human_bytes(progress.total_bytes)})" if progress.total_bytes else ""
            note(f"{text}{size}")
            return
        self.end()
        self._task = self._bars.add_task(text, total=None)
