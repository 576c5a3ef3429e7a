"""The simulations of a mesh as a picture. Needs matplotlib, which the extra ``bench`` installs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from bench.mesh_figures import Figures
from bench.plot import COLOURS, NO_MATPLOTLIB

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(found: Sequence[Figures], path: Path) -> Path | str:
    """Writes the picture to ``path`` as SVG. Returns that, or a sentence where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return NO_MATPLOTLIB
    figure = Figure(figsize=(12, 4), layout="constrained")
    choice, hits, balance = figure.subplots(1, 3)
    _lines(choice, found, "a choice, p50 and (dotted) p99, µs", lambda one: one.choice_p50_us)
    _lines(choice, found, "", lambda one: one.choice_p99_us, style=":")
    _lines(hits, found, "cache hits, % of one large machine's", lambda one: 100 * one.hit_rate / one.single_hit_rate)
    _lines(balance, found, "work, busiest machine / mean", lambda one: one.work_ratio)
    balance.set_ylim(bottom=1)
    hits.legend()
    figure.savefig(path, format="svg")
    return path


def _lines(
    axes: Axes, found: Sequence[Figures], title: str, get: Callable[[Figures], float], *, style: str = "-"
) -> None:
    kinds = list(dict.fromkeys((one.workload, one.policy) for one in found))
    for (workload, policy), colour in zip(kinds, COLOURS * len(kinds), strict=False):
        mine = [one for one in found if (one.workload, one.policy) == (workload, policy)]
        sizes = [one.machines for one in mine]
        axes.plot(sizes, list(map(get, mine)), style, marker="o", color=colour, label=f"{workload}, by {policy}")
    if title:
        axes.set_title(title, fontsize=10)
        axes.set_xlabel("machines")
        axes.set_xscale("log")
        axes.set_xticks(sorted({one.machines for one in found}))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.minorticks_off()
        axes.set_ylim(bottom=0)
        axes.grid(alpha=0.3)
