"""The benchmark of clients that leave: its table. Its phases run against a real server only."""

from __future__ import annotations

from bench.cancellation import Found, table


def test_a_table_has_the_worst_time_too() -> None:
    found = [Found("queued", (1.0, 2.0, 3.0), 12.5), Found("once", (7.0,), 1.0)]
    lines = table(found).splitlines()
    assert "| queued | 3 | 2.0 ms | 3.0 ms | 3.0 ms | 12.5 ms |" in lines
    assert "| once | 1 | 7.0 ms | 7.0 ms | 7.0 ms | 1.0 ms |" in lines
