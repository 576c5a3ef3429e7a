"""Figures, tables and the file of results."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.figures import errors, quantile, row, rows
from bench.record import Record, Results
from bench.report import report
from bench.stream import Stream
from bench.workloads import Mixed


def stream(started: float, pieces: list[float], label: str = "", error: str = "") -> Stream:
    return Stream(started, label, pieces, pieces[-1] if pieces else started, 128, 0, len(pieces), error)


def record(server: str, turn: int, *streams: Stream, workload: str = "chat, 2 streams") -> Record:
    return Record(server, workload, turn, 100_000_000 * turn, streams)


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=50), st.sampled_from([0.5, 0.99]))
def test_quantiles_lie_within(values: list[float], share: float) -> None:
    found = quantile(values, share)
    assert min(values) <= found <= max(values) or math.isclose(found, max(values)) or math.isclose(found, min(values))


def test_quantiles() -> None:
    assert quantile(range(101), 0.5) == 50
    assert quantile(range(101), 0.99) == 99
    assert math.isnan(quantile([], 0.5))


def test_a_row_is_over_all_rounds() -> None:
    one = record("a", 1, stream(0.0, [0.1, 0.2, 0.4]), stream(0.0, [0.3, 0.5]))
    two = record("a", 2, stream(1.0, [1.5, 2.0]), stream(0.0, [], error="HTTP 500"))
    found = row([one, two], "")
    assert (found.requests, found.errors) == (4, 1)
    assert list(found.tokens_per_s) == pytest.approx([10, 2])
    assert found.ttft_p50_ms == pytest.approx(300)
    assert found.itl_p50_ms == pytest.approx(200)
    assert found.peak_rss_mb == 200
    assert found.tokens_per_piece == 1


def test_errors_alone_are_no_figures() -> None:
    found = row([record("a", 1, stream(0.0, [], error="HTTP 500"))], "")
    assert found.errors == found.requests == 1
    assert math.isnan(found.ttft_p50_ms)
    assert math.isnan(found.tokens_per_piece)


def test_mixed_gaps_count_only_while_long_prompts_arrive() -> None:
    streams = (stream(0.0, [1.0, 2.0, 6.0, 7.0], "streams"), stream(1.5, [6.5], Mixed.long_label))
    assert row([record("a", 1, *streams)], "streams").itl_p50_ms == pytest.approx(2500)


def test_rows_are_in_the_order_of_workloads_and_servers() -> None:
    records = [record(server, 1, stream(0.0, [1.0]), workload=name) for name in "yx" for server in "ba"]
    assert [(found.workload, found.server) for found in rows(records, ["a", "b"])] == [
        ("y", "a"),
        ("y", "b"),
        ("x", "a"),
        ("x", "b"),
    ]


def test_errors_are_counted() -> None:
    streams = [Stream(0.0, error=error) for error in ("b", "a", "b", "")]
    assert errors(streams) == {"b": 2, "a": 1}


@pytest.fixture
def results() -> Results:
    def prefix(server: str, first: float, again: float) -> Record:
        streams = stream(0.0, [first], "first"), stream(9.0, [9.0 + again], "again"), stream(19.0, [20.0], "other end")
        return record(server, 1, *streams, workload="shared prefix")

    fast, slow = stream(0.0, [0.1, 0.2]), stream(0.0, [0.4, 0.8])
    bad = stream(0.0, [], error="HTTP 500")
    records = [
        record("Mantler", 1, fast),
        record("Mantler", 2, fast),
        record("peer", 1, slow),
        record("peer", 2, slow, bad),
        prefix("Mantler", 1.0, 0.1),
        prefix("peer", 2.0, 1.0),
    ]
    servers = {"Mantler": "0.1", "peer": "1.0"}
    return Results("2026-01-31", "make bench", {"processor": "fast"}, servers, {"third": "is missing"}, records)


def test_a_report_says_it_all(results: Results) -> None:
    lines = report(results).splitlines()
    assert "| Mantler | 10, 10 | 100 ms | 100 ms | 100.0 ms | 100.0 ms | 200 MB | 0 |" in lines
    assert "| peer | 2, 2 | 400 ms | 400 ms | 400.0 ms | 400.0 ms | 200 MB | 1 of 3 |" in lines
    assert "| chat, 2 streams | peer | 4.00 × | 0.25 × | 0.25 × | 0.25 × |" in lines
    assert "| Mantler | shared prefix: TTFT p50 of “again” to that of “first” | 0.100 × |" in lines
    assert "- third: is missing" in lines
    assert "- peer, chat, 2 streams, round 2: 1 × HTTP 500." in lines


def test_results_are_read_as_they_were_written(results: Results, tmp_path: Path) -> None:
    path = tmp_path / "results.json"
    results.save(path)
    assert Results.load(path) == results
    assert [file.name for file in tmp_path.iterdir()] == ["results.json"]


def test_a_report_of_one_server_compares_nothing(results: Results) -> None:
    alone = dataclasses.replace(results, servers={"peer": "1.0"}, records=results.records[2:4])
    assert "against" not in report(alone)


def test_a_plot_is_drawn(results: Results, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    from bench.plot import draw

    path = draw(results, tmp_path)
    assert isinstance(path, Path)
    assert path.read_text().lstrip().startswith("<?xml")
