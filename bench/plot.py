"""The benchmark's results as a picture. Needs matplotlib, which the extra ``bench`` installs."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.figures import Row, rows
from bench.record import Results

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NO_MATPLOTLIB = "no plot: matplotlib is missing; `pip install 'mantler[bench]'` has it"
COLOURS = ("#0b6e4f", "#c8553d", "#3d6cb9", "#8fa9d6", "#7a5c99")


def draw(results: Results, folder: Path) -> Path | str:
    """Puts ``report.svg`` into ``folder``. Returns its path, or a sentence where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return NO_MATPLOTLIB
    found = rows(results.records, list(results.servers))
    colours = dict(zip(results.servers, COLOURS * len(results.servers), strict=False))
    figure = Figure(figsize=(12, 8), layout="constrained")
    axes = figure.subplots(2, 2)
    lines(axes[0][0], found, colours, "output tokens/s", lambda row: row.mean_tokens_per_s)
    lines(axes[0][1], found, colours, "time to first token, p50, ms", lambda row: row.ttft_p50_ms, log=True)
    lines(axes[1][0], found, colours, "inter-token, p50 and (dotted) p99, ms", lambda row: row.itl_p50_ms, log=True)
    lines(axes[1][0], found, colours, "", lambda row: row.itl_p99_ms, style=":")
    bars(axes[1][1], [row for row in found if level(row) is None], colours)
    axes[0][0].legend()
    figure.suptitle(f"SmolLM2-135M-Instruct, {results.machine.get('processor', '')}, {results.date}", fontsize=10)
    path = folder / "report.svg"
    figure.savefig(path)
    return path


def level(row: Row) -> int | None:
    """The concurrency of a chat row."""
    match = re.fullmatch(r"chat, (\d+) streams?", row.workload)
    return int(match[1]) if match else None


def lines(
    axes: Axes,
    found: Sequence[Row],
    colours: dict[str, str],
    title: str,
    get: Callable[[Row], float],
    *,
    style: str = "-",
    log: bool = False,
) -> None:
    """A figure of the chat workloads over their concurrency, a line for each server."""
    for server, colour in colours.items():
        points = [(at, get(row)) for row in found if row.server == server and (at := level(row)) is not None]
        points = [(at, value) for at, value in points if math.isfinite(value)]
        axes.plot(*zip(*points, strict=True) if points else ((), ()), style, marker="o", color=colour, label=server)
    if title:
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("streams")
        axes.set_xticks(sorted({at for row in found if (at := level(row)) is not None}))
        axes.grid(alpha=0.3)
        if log:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter("{x:g}")
            axes.yaxis.set_minor_formatter("{x:g}")
        else:
            axes.set_ylim(bottom=0)


def bars(axes: Axes, found: Sequence[Row], colours: dict[str, str]) -> None:
    """Times to the first token of the other workloads."""
    groups = list(dict.fromkeys((row.workload, row.label) for row in found))
    height = 0.8 / len(colours)
    for number, (server, colour) in enumerate(colours.items()):
        mine = [row for row in found if row.server == server and math.isfinite(row.ttft_p50_ms)]
        at = [groups.index((row.workload, row.label)) + number * height for row in mine]
        axes.barh(at, [row.ttft_p50_ms for row in mine], height=height, color=colour)
    axes.set_yticks([place + 0.4 for place in range(len(groups))], ["\n".join(filter(None, group)) for group in groups])
    axes.tick_params(axis="y", labelsize=7)
    axes.set_title("time to first token, p50, ms", fontsize=10)
    axes.invert_yaxis()
    axes.grid(axis="x", alpha=0.3)
    if groups:
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter("{x:g}")
