"""Figures of many streams: the rows of the tables."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from bench.record import Record
from bench.stream import Stream, busy_s
from bench.workloads import arrival_window


@dataclass(frozen=True, slots=True)
class Row:
    """One server under one workload, all rounds together. NaN where nothing was measured."""

    workload: str
    label: str
    """Which requests of the workload, where they differ."""
    server: str
    requests: int
    errors: int
    tokens_per_s: tuple[float, ...]
    """Output tokens, for each round, over the time in which at least one of the requests was open."""
    ttft_p50_ms: float
    ttft_p99_ms: float
    itl_p50_ms: float
    itl_p99_ms: float
    """Between pieces of text. Of a mixed workload: only while its long prompts arrive."""
    peak_rss_mb: float
    prompt_tokens: float
    cached_tokens: float
    """Both on average, as the server counts them."""
    tokens_per_piece: float

    @property
    def mean_tokens_per_s(self) -> float:
        """Over the rounds."""
        return statistics.fmean(self.tokens_per_s)


def rows(records: Sequence[Record], servers: Sequence[str]) -> list[Row]:
    """The rows of all workloads, in the order of measuring; within one, in the order of ``servers``."""
    workloads = list(dict.fromkeys(record.workload for record in records))
    found = []
    for workload in workloads:
        own = [record for record in records if record.workload == workload]
        labels = dict.fromkeys(stream.label for record in own for stream in record.streams)
        each = [[record for record in own if record.server == server] for server in servers]
        found += [row(mine, label) for label in labels for mine in each if mine]
    return found


def row(records: Sequence[Record], label: str) -> Row:
    """The requests called ``label`` of one server and workload, over all rounds."""
    good, gaps, rates, asked = [], [], [], 0
    for record in records:
        streams = [stream for stream in record.streams if stream.label == label]
        fine = [stream for stream in streams if not stream.error]
        asked += len(streams)
        good += fine
        window = arrival_window(list(record.streams))
        gaps += [gap for stream in fine for gap in stream.gaps(window)]
        rates.append(rate(fine, busy_s(streams)))
    first = [stream.first for stream in good]
    pieces = sum(len(stream.pieces) for stream in good)
    return Row(
        records[0].workload,
        label,
        records[0].server,
        asked,
        asked - len(good),
        tuple(rates),
        1000 * quantile(first, 0.5),
        1000 * quantile(first, 0.99),
        1000 * quantile(gaps, 0.5),
        1000 * quantile(gaps, 0.99),
        max(record.peak_rss_bytes for record in records) / 1e6,
        _mean(stream.prompt_tokens for stream in good),
        _mean(stream.cached_tokens for stream in good),
        sum(stream.tokens for stream in good) / pieces if pieces else float("nan"),
    )


def rate(streams: Iterable[Stream], seconds: float) -> float:
    """Output tokens per second."""
    return sum(stream.tokens for stream in streams) / seconds if seconds else float("nan")


def quantile(values: Sequence[float], share: float) -> float:
    """The value below which ``share`` of ``values`` lie; NaN where there are none."""
    if len(values) < 2:
        return values[0] if values else float("nan")
    return statistics.quantiles(values, n=1000, method="inclusive")[round(share * 1000) - 1]


def errors(streams: Iterable[Stream]) -> dict[str, int]:
    """How often each error came, the most frequent first."""
    named = sorted(stream.error for stream in streams if stream.error)
    counts = {error: len(list(group)) for error, group in groupby(named)}
    return dict(sorted(counts.items(), key=lambda item: -item[1]))


def _mean(values: Iterable[float]) -> float:
    listed = list(values)
    return statistics.fmean(listed) if listed else float("nan")
