"""The results as Markdown."""

from __future__ import annotations

from collections.abc import Sequence

from bench.gpu.figures import DecodeFigures, MixedFigures
from bench.gpu.results import DecodeRow, MixedRow, Results
from bench.gpu.said import Said
from bench.report import listed, markdown, number

NAN = float("nan")
DECODE_HEADS = (
    "decoding", "streams", "context", "step", "tokens/s", "read per step", "of the limit", "host per step", "steps",
)  # fmt: skip
NOTE = (
    "Context: tokens that a stream's step looks at. Step: the median, while all streams decode. Host: time of a step, "
    "on average, in which the device waits for the processor."
)
LIMIT = (
    "The limit is the time in which the device could have read the weights once and each stream's keys and values, at "
    "the bandwidth above."
)
MIXED_HEADS = ("mixed load", "streams", "TTFT p50", "most", "inter-token p50", "p99")


def page(results: Results) -> str:
    """The whole page."""
    parts = [f"# {results.model}, {results.date}", f"Made by `{results.command}`.", listed(results.machine)]
    if results.bandwidth is not None:
        parts.append(f"The device copies {results.bandwidth / 1e9:,.1f} GB/s, read and written bytes together.")
    if results.decode:
        parts += [decode_table(results.decode), NOTE if results.bandwidth is None else f"{NOTE} {LIMIT}"]
    if results.mixed:
        parts.append(mixed_table(results.mixed))
    if results.absent:
        parts.append("Not measured:\n\n" + listed(results.absent))
    return "\n\n".join(parts) + "\n"


def decode_table(rows: Sequence[DecodeRow]) -> str:
    """A line for each size of batch, those of one name together."""
    names = list(dict.fromkeys(row.name for row in rows))
    lines = [
        [
            row.name,
            str(row.figures.batch),
            number(row.figures.context, 0),
            number(row.figures.step_ms, 2, " ms"),
            number(row.figures.tokens_per_s, 0),
            number(row.step_bytes / 1e9, 2, " GB"),
            number(100 * _known(row.limit_share), 1, " %"),
            number(_known(row.figures.host_ms), 2, " ms"),
            str(row.figures.steps),
        ]
        for row in sorted(rows, key=lambda row: names.index(row.name))
    ]
    return markdown(DECODE_HEADS, lines)


def mixed_table(rows: Sequence[MixedRow]) -> str:
    """A line for each name."""
    lines = [
        [
            f"{row.name}, {row.figures.long_prompts} prompts of {row.figures.long_tokens} tokens",
            str(row.figures.streams),
            number(row.figures.ttft_p50_ms, 1, " ms"),
            number(row.figures.ttft_most_ms, 1, " ms"),
            number(row.figures.itl_p50_ms, 2, " ms"),
            number(row.figures.itl_p99_ms, 2, " ms"),
        ]
        for row in rows
    ]
    return markdown(MIXED_HEADS, lines)


def summary(said: Said, name: str) -> str:
    """A line for who waits for the table, of one thing that a process said of ``name``."""
    name = said.get("name") or name
    match said["said"]:
        case "decode":
            figures = DecodeFigures(**said["figures"])
            return (
                f"{name}, {figures.batch} streams: {figures.step_ms:.2f} ms a step, {figures.tokens_per_s:.0f} tokens/s"
            )
        case "mixed":
            mixed = MixedFigures(**said["figures"])
            return f"{name}, mixed load: TTFT {mixed.ttft_p50_ms:.1f} ms, inter-token p99 {mixed.itl_p99_ms:.2f} ms"
        case "bandwidth":
            return f"{name}: {said['bytes_per_s'] / 1e9:.1f} GB/s"
        case "absent":
            return f"{name}, {said['what']}: not measured: {said['why']}"
        case _:
            return ", ".join(f"{key} {value}" for key, value in said.items() if key != "said")


def _known(value: float | None) -> float:
    return NAN if value is None else value
