"""What one client saw, and the order of its times."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.stream import Request, Stream, busy_s, checked

spans = st.lists(st.tuples(st.integers(0, 50), st.integers(0, 50)).map(sorted), max_size=12)


def test_gaps_of_a_window_end_in_it() -> None:
    stream = Stream(0.0, pieces=[1.0, 2.0, 4.0, 8.0])
    assert stream.first == 1.0
    assert stream.gaps() == [1.0, 2.0, 4.0]
    assert stream.gaps((2.5, 5.0)) == [2.0]


def test_stored_times_count_from_the_start() -> None:
    stream = Stream(100.0, "again", [100.25], 101.0, 5, 3, 1)
    stored = stream.since(100.0)
    assert stored["started"] == 0.0
    assert stored["pieces"] == [0.25]
    assert Stream(**stored) == Stream(0.0, "again", [0.25], 1.0, 5, 3, 1)


@pytest.mark.parametrize(
    ("stream", "error"),
    [
        (Stream(0.0, tokens=2, pieces=[1.0]), ""),
        (Stream(0.0, tokens=1, pieces=[1.0]), "1 tokens, not 2"),
        (Stream(0.0, tokens=2), "no text"),
        (Stream(0.0, tokens=1, error="HTTP 500"), "HTTP 500"),
    ],
)
def test_an_answer_must_have_all_its_tokens(stream: Stream, error: str) -> None:
    found = checked(stream, Request("", "", 2, "label"))
    assert (found.error, found.label) == (error, "label")


@given(spans)
def test_busy_time_is_that_of_the_union(spans: list[list[int]]) -> None:
    seconds = {second for start, end in spans for second in range(start, end)}
    assert busy_s(Stream(float(start), ended=float(end)) for start, end in spans) == len(seconds)
