"""What a drill does to machines, and how it judges what clients heard."""

from __future__ import annotations

import asyncio

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mantler.cli.drill.cable import Cable
from mantler.cli.drill.schedule import Harm, schedule
from mantler.cli.drill.verdict import Change, Heard, Suffered, Times, verdict

EXPECTED = {0: ["a", "b", "c", "a"], 1: []}


@given(st.integers(2, 8), st.floats(10, 300), st.floats(0.5, 30), st.floats(0.5, 10), st.integers(0, 99))
def test_a_machine_is_left_at_any_time(
    machines: int, seconds: float, every_s: float, lasts_s: float, seed: int
) -> None:
    faults = schedule(
        machines=machines, seconds=seconds, every_s=every_s, harms=tuple(Harm), seed=seed, lasts_s=lasts_s
    )
    for fault in faults:
        broken = {other.machine for other in faults if other.at_s <= fault.at_s < other.at_s + other.lasts_s}
        assert len(broken) < machines
        assert fault.at_s + fault.lasts_s < seconds
    assert faults == schedule(
        machines=machines, seconds=seconds, every_s=every_s, harms=tuple(Harm), seed=seed, lasts_s=lasts_s
    )


def test_one_machine_is_too_few() -> None:
    with pytest.raises(ValueError, match="at least 2"):
        schedule(machines=1, seconds=60, every_s=5, harms=(Harm.KILL,), seed=1)


@pytest.mark.parametrize(
    ("tokens", "lost", "repeated"),
    [
        (["a", "b", "c", "a"], 0, 0),
        (["a", "c", "a"], 1, 0),
        (["a", "b", "b", "c", "a"], 0, 1),
        (["a", "x", "c", "a"], 1, 1),
        ([], 4, 0),
    ],
)
def test_tokens_are_held_against_the_undisturbed_answer(tokens: list[str], lost: int, repeated: int) -> None:
    found = verdict([Heard(0, tokens, done=True)], EXPECTED, resumed=0, faults=[])
    assert (found.lost_tokens, found.repeated_tokens) == (lost, repeated)
    assert found.good == (lost + repeated == 0)


def test_refused_streams_are_not_broken_ones() -> None:
    streams = [
        Heard(0, EXPECTED[0], done=True, longest_silence_s=2.0),
        Heard(0, ["a"], error="machine_offline"),
        Heard(1, refused=True, error="queue_full"),
    ]
    found = verdict(streams, EXPECTED, resumed=1, faults=[])
    assert (found.started, found.finished, found.broken, found.refused) == (3, 1, 1, 1)
    assert found.errors == {"machine_offline": 1, "queue_full": 1}
    assert (found.silence_p50_s, found.silence_max_s) == (2.0, 2.0)
    assert not found.good
    assert not verdict([], EXPECTED, resumed=0, faults=[]).good


def test_how_long_it_took_to_notice() -> None:
    faults = [Suffered("a", 10.0, 14.0), Suffered("b", 20.0, 24.0), Suffered("a", 30.0, 31.0)]
    changes = [
        Change(1.0, "a", online=True),
        Change(12.0, "a", online=False),
        Change(13.5, "a", online=True),
        Change(20.5, "b", online=False),
        Change(24.25, "b", online=True),
        # The last fault was over before anybody noticed.
    ]
    found = verdict([], EXPECTED, resumed=0, faults=faults, changes=changes)
    assert found.detection == Times(2, 2.0, 2.0)
    assert found.recovery == Times(3, 0.0, 0.25)


async def test_a_cable_that_is_cut_says_nothing() -> None:
    async def echo(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(100):
            writer.write(data)
        writer.close()

    async with await asyncio.start_server(echo, "127.0.0.1", 0) as server:
        host, port = server.sockets[0].getsockname()
        async with Cable(f"{host}:{port}") as cable:
            reader, writer = await asyncio.open_connection(*cable.address.split(":"))
            writer.write(b"one")
            assert await reader.read(100) == b"one"
            cable.cut()
            writer.write(b"two")
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.1):
                    await reader.read(100)
            cable.mend()
            assert await reader.read(100) == b"two"
            writer.write_eof()
            assert await reader.read(100) == b""
            writer.close()
