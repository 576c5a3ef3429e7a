"""The benchmark's results as Markdown. It can also be made anew from a file of results.

Example:
  python -m bench.report .cache/bench/2026-01-31/results.json
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from itertools import groupby
from pathlib import Path

from bench.figures import Row, errors, rows
from bench.record import Results

HEADS = (
    "server", "output tokens/s", "TTFT p50", "p99", "inter-token p50", "p99", "peak memory", "errors",
)  # fmt: skip
OURS = "Mantler"
PIECES_TOLERANCE = 0.02
"""Share by which tokens and pieces may differ before it is said."""


def report(results: Results) -> str:
    """The whole page."""
    found = rows(results.records, list(results.servers))
    parts = [f"# Benchmark of {results.date}", f"Made by `{results.command}`."]
    parts.append(listed(results.machine))
    parts.append(listed(results.servers))
    if results.absent:
        parts.append("Left out:\n\n" + listed(results.absent))
    for workload, group in groupby(found, key=lambda row: row.workload):
        parts += [f"## {workload[0].upper()}{workload[1:]}", *sections(list(group))]
    if within := inner_ratios(found):
        parts += ["## Within each server", within]
    if against := ratios(found):
        parts += [f"## {OURS} against each peer", against]
    parts += ["## Notes", notes(results, found)]
    return "\n\n".join(parts) + "\n"


def sections(group: Sequence[Row]) -> list[str]:
    """A table for each label of a workload."""
    parts = []
    for label, labelled in groupby(group, key=lambda row: row.label):
        if label:
            parts.append(f"{label[0].upper()}{label[1:]}:")
        parts.append(table(list(labelled)))
    return parts


def table(found: Sequence[Row]) -> str:
    """One line per server."""
    lines = [
        [
            row.server,
            ", ".join(number(rate, 0) for rate in row.tokens_per_s),
            number(row.ttft_p50_ms, 0, " ms"),
            number(row.ttft_p99_ms, 0, " ms"),
            number(row.itl_p50_ms, 1, " ms"),
            number(row.itl_p99_ms, 1, " ms"),
            number(row.peak_rss_mb, 0, " MB"),
            f"{row.errors} of {row.requests}" if row.errors else "0",
        ]
        for row in found
    ]
    return markdown(HEADS, lines)


def inner_ratios(found: Sequence[Row]) -> str:
    """What the prefix cache saves, and what long prompts cost those that decode; empty where neither was measured."""
    lines = []
    for server in dict.fromkeys(row.server for row in found):
        mine = {row.label: row for row in found if row.server == server}
        if "first" in mine:
            first = mine["first"].ttft_p50_ms
            for label in ("again", "other end"):
                ratio = number(divide(mine[label].ttft_p50_ms, first), 3, " ×")
                lines.append([server, f"shared prefix: TTFT p50 of “{label}” to that of “first”", ratio])
        if "streams" in mine:
            mixed = mine["streams"]
            ratio = number(divide(mixed.itl_p99_ms, mixed.itl_p50_ms), 2, " ×")
            lines.append([server, "while long prompts arrive: inter-token p99 to p50", ratio])
            alone = f"chat, {mixed.workload.partition(' while')[0]}"
            for row in [row for row in found if row.server == server and row.workload == alone]:
                ratio = number(divide(mixed.itl_p99_ms, row.itl_p50_ms), 2, " ×")
                lines.append([server, f"inter-token p99 while long prompts arrive to p50 of “{row.workload}”", ratio])
    return markdown(("server", "ratio", ""), lines, left=2) if lines else ""


def ratios(found: Sequence[Row]) -> str:
    """Our figures divided by each peer's; empty where there are none."""
    ours = {(row.workload, row.label): row for row in found if row.server == OURS and row.requests > row.errors}
    figures: list[Callable[[Row], float]] = [
        lambda row: row.mean_tokens_per_s,
        lambda row: row.ttft_p50_ms,
        lambda row: row.itl_p50_ms,
        lambda row: row.itl_p99_ms,
    ]
    lines = []
    for row in found:
        mine = ours.get((row.workload, row.label))
        if mine is not None and row is not mine:
            what = f"{row.workload}: {row.label}" if row.label else row.workload
            lines.append([what, row.server, *(number(divide(get(mine), get(row)), 2, " ×") for get in figures)])
    heads = ("workload", "peer", "output tokens/s", "TTFT p50", "inter-token p50", "inter-token p99")
    return markdown(heads, lines, left=2) if lines else ""


def notes(results: Results, found: Sequence[Row]) -> str:
    """What one must know to read the tables, and what went wrong."""
    lines = [
        "Times are the client's, which shares the machine with the server. Quantiles are over the requests of all "
        "rounds; output tokens/s are given for each round.",
        "Inter-token times lie between pieces of text. Tokens are counted by the server; an answer without exactly as "
        "many as were asked for is an error.",
        "Peak memory is the resident memory of the server's processes together, pages that they share counted in each.",
    ]
    prompts = {row.workload: row.prompt_tokens for row in found if not row.label and row.prompt_tokens > 0}
    lines += [f"Prompts of “{workload}” have {tokens:.0f} tokens." for workload, tokens in prompts.items()]
    for row in found:
        if row.cached_tokens > 0:
            what = f"{row.workload}: {row.label}" if row.label else row.workload
            lines.append(
                f"{row.server}, {what}: {row.cached_tokens:.0f} prompt tokens came from its cache, on average."
            )
        if abs(row.tokens_per_piece - 1) > PIECES_TOLERANCE:
            lines.append(f"{row.server}, {row.workload}: {row.tokens_per_piece:.2f} tokens per piece of text.")
    for record in results.records:
        for error, count in errors(record.streams).items():
            lines.append(f"{record.server}, {record.workload}, round {record.round}: {count} × {error}.")
    return "\n".join(f"- {line}" for line in dict.fromkeys(lines))


def markdown(heads: Sequence[str], lines: Sequence[Sequence[str]], left: int = 1) -> str:
    """A table whose first ``left`` columns are text, the others numbers."""
    rule = ["---"] * left + ["---:"] * (len(heads) - left)
    return "\n".join(f"| {' | '.join(line)} |" for line in [heads, rule, *lines])


def listed(values: dict[str, str]) -> str:
    """A list of names and values."""
    return "\n".join(f"- {name}: {value}" for name, value in values.items())


def number(value: float, digits: int, unit: str = "") -> str:
    """``value`` for people; a dash where there is none."""
    return f"{value:.{digits}f}{unit}" if math.isfinite(value) else "–"


def divide(value: float, by: float) -> float:
    """A ratio; NaN where it has no meaning."""
    return value / by if by else float("nan")


def write(results: Results, folder: Path) -> Path:
    """Puts ``report.md`` into ``folder``."""
    path = folder / "report.md"
    path.write_text(report(results), encoding="utf-8")
    return path


def main() -> None:
    from bench.plot import draw

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("results", type=Path, help="results.json of a run")
    given = parser.parse_args()
    results = Results.load(given.results)
    print(write(results, given.results.parent))
    print(draw(results, given.results.parent))


if __name__ == "__main__":
    main()
