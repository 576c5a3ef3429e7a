"""The benchmark of a token's way, in small: a runtime without a model, a real facade, and the client."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.relay import Cost, cost, delays_ms, idle_bytes, line, started


@pytest.mark.e2e
async def test_a_small_relay(tmp_path: Path) -> None:
    with started(tmp_path) as servers:
        spent = await cost(servers, 1, streams=2, tokens=20)
        direct, relayed = await delays_ms(servers, 1, 20)
        await idle_bytes(servers, 3)
        log = (tmp_path / "log").read_text()
    assert spent.tokens == 40
    assert 0 < spent.chunks <= 40
    assert all(0 < delay < 10_000 for delay in direct + relayed)
    assert direct
    assert relayed
    assert "Unknown experiment" not in log, "gRPC does not know the name that mantler/cli/serve.py gives it"


def test_a_line_has_medians() -> None:
    runs = [Cost(tokens=1000, chunks=500, runtime_s=s, facade_s=s, client_s=s) for s in (0.1, 0.2, 9.0)]
    assert line(14, 16, runs) == ["14 ms", "16", "0.50", "0.200 ms", "0.200 ms", "0.200 ms", "2500"]
