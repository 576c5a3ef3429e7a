"""From the times at which tokens came to the figures of the tables. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean

from bench.figures import quantile
from bench.stream import Stream
from bench.workloads import Mixed, arrival_window

LONG = Mixed.long_label
MIN_STEPS = 4
"""Fewer steps in which everybody decodes are no measurement."""


class UnmeasuredError(Exception):
    """There is no figure. The message says why."""


@dataclass(frozen=True, slots=True)
class DecodeFigures:
    """Streams that decode together, while all of them do."""

    batch: int
    context: float
    """Tokens that a stream's step looks at, on average."""
    steps: int
    step_ms: float
    """The median."""
    tokens_per_s: float
    """Of all streams."""
    host_ms: float | None = None
    """Of a step on average, time in which the device waited for the processor; ``None`` where nobody tells."""


@dataclass(frozen=True, slots=True)
class MixedFigures:
    """Long prompts that arrive while others decode. The times between tokens are of those others, meanwhile."""

    streams: int
    long_prompts: int
    long_tokens: int
    ttft_p50_ms: float
    ttft_most_ms: float
    itl_p50_ms: float
    itl_p99_ms: float


def decode_figures(streams: Sequence[Stream], prompt_tokens: int, host_ms: float | None = None) -> DecodeFigures:
    """The figures of streams with prompts of ``prompt_tokens``, from when the last begins until the first ends.

    Raises :class:`UnmeasuredError` where a stream failed or they did not decode together.
    """
    _check(streams)
    begin = max(stream.pieces[0] for stream in streams)
    end = min(stream.pieces[-1] for stream in streams)
    # The tokens of one step come one after the other, so its streams' windows differ by some of them.
    together = [[(n, at) for n, at in enumerate(stream.pieces) if begin <= at <= end] for stream in streams]
    steps = min(len(pieces) for pieces in together) - 1
    if steps < MIN_STEPS:
        raise UnmeasuredError(f"only {max(0, steps)} steps in which all {len(streams)} streams decode")
    return DecodeFigures(
        batch=len(streams),
        # The n-th token of a stream, counted from 0, is computed from its prompt and n tokens.
        context=prompt_tokens + fmean(n for pieces in together for n, _ in pieces[1:]),
        steps=steps,
        step_ms=1000 * quantile([gap for stream in streams for gap in stream.gaps((begin, end))], 0.5),
        tokens_per_s=sum((len(pieces) - 1) / (pieces[-1][1] - pieces[0][1]) for pieces in together),
        host_ms=host_ms,
    )


def mixed_figures(streams: Sequence[Stream], long_tokens: int) -> MixedFigures:
    """The figures of a mixed load, whose long prompts are labelled :data:`LONG`.

    Raises :class:`UnmeasuredError` where a stream failed or did not decode all the while.
    """
    _check(streams)
    window = arrival_window(list(streams))
    if window is None:
        raise UnmeasuredError("no long prompt was answered")
    others = [stream for stream in streams if stream.label != LONG]
    if any(stream.pieces[0] > window[0] or stream.pieces[-1] < window[1] for stream in others):
        raise UnmeasuredError("not all streams decoded while the long prompts arrived")
    first = [stream.first for stream in streams if stream.label == LONG]
    gaps = [gap for stream in others for gap in stream.gaps(window)]
    return MixedFigures(
        streams=len(others),
        long_prompts=len(first),
        long_tokens=long_tokens,
        ttft_p50_ms=1000 * quantile(first, 0.5),
        ttft_most_ms=1000 * max(first),
        itl_p50_ms=1000 * quantile(gaps, 0.5),
        itl_p99_ms=1000 * quantile(gaps, 0.99),
    )


def _check(streams: Sequence[Stream]) -> None:
    for stream in streams:
        if stream.error or not stream.pieces:
            raise UnmeasuredError(stream.error or "a stream got no token")
