"""The soak test's samples as a picture. Needs matplotlib, which the extra ``bench`` installs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from bench.plot import COLOURS, NO_MATPLOTLIB
from bench.soak_verdict import Sample


def draw(samples: Sequence[Sample], folder: Path) -> Path | str:
    """Puts ``soak.svg`` into ``folder``. Returns its path, or a sentence where matplotlib is missing."""
    try:
        from matplotlib.figure import Figure
    except ModuleNotFoundError:
        return NO_MATPLOTLIB
    figure = Figure(figsize=(10, 7), layout="constrained")
    memory, use = figure.subplots(2, 1, sharex=True)
    at = [sample.at_s / 60 for sample in samples]
    memory.plot(at, [sample.runtime_mb for sample in samples], color=COLOURS[0], label="runtime")
    memory.plot(at, [sample.facade_mb for sample in samples], color=COLOURS[1], label="facade")
    memory.set_ylim(bottom=0)
    memory.set_title("resident memory, MB", fontsize=10)
    use.plot(at, [sample.slots_used for sample in samples], color=COLOURS[0], label="slots used")
    use.plot(at, [sample.queue for sample in samples], color=COLOURS[2], label="queued")
    use.plot(at, [sample.errors for sample in samples], color=COLOURS[1], label="errors so far")
    use.set_xlabel("minutes")
    for axes in (memory, use):
        axes.legend()
        axes.grid(alpha=0.3)
    path = folder / "soak.svg"
    figure.savefig(path)
    return path
