"""The mix of calls and the verdict of the soak test."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.soak_calls import CANCEL_WITHIN_S, KINDS, Call, Mix
from bench.soak_client import CANCELLED, OK, REFUSED, BadAnswerError, Tally, events
from bench.soak_verdict import JUDGED_MINUTES, Check, End, Sample, checks, growth
from facade.schema import parse_chat_body, to_generate_request
from tests.bench.test_client import lines

GOOD_END = End(idle=True, restarted=(), exit_code=0)


def calls(count: int, seed: int = 1) -> list[Call]:
    return list(itertools.islice(Mix("smollm2:135m", random.Random(seed)), count))


def samples(runtime_mb: list[float]) -> list[Sample]:
    return [Sample(5.0 * number, value, 100.0, 0, 0, 1, 0, 0, 0) for number, value in enumerate(runtime_mb)]


def tally() -> Tally:
    made = Tally()
    made.add("short", OK)
    made.add("burst", REFUSED)
    made.add("long", CANCELLED)
    return made


def failed(found: list[Check]) -> list[str]:
    return [check.name for check in found if check.good is False]


def test_a_seed_repeats_its_mix() -> None:
    assert calls(50) == calls(50)
    assert calls(50) != calls(50, seed=2)


def test_every_kind_is_called_and_some_clients_go_away() -> None:
    made = calls(600)
    assert len({call.kind for call in made}) == len(KINDS)
    away = [call.cancel_after_s for call in made if call.cancel_after_s is not None]
    assert 60 < len(away) < 180
    assert all(0 <= after <= CANCEL_WITHIN_S for after in away)
    canaries = [call for call in made if call.canary]
    assert all(call.cancel_after_s is None and call.body["temperature"] == 0 for call in canaries)
    assert len({(call.canary, str(call.body)) for call in canaries}) == len({call.canary for call in canaries})


def test_every_call_is_one_that_the_facade_takes() -> None:
    import json

    mix = Mix("smollm2:135m", random.Random(3))
    for call in [*itertools.islice(mix, 300), *mix.burst(3)]:
        request = to_generate_request(parse_chat_body(json.dumps(call.body).encode()), "request")
        assert request.stop.max_tokens == call.body["max_tokens"]


@given(st.floats(-5, 5), st.floats(0, 1000), st.integers(2, 60))
def test_growth_is_that_of_the_line(slope: float, start: float, count: int) -> None:
    at = [5.0 * number for number in range(count)]
    assert growth(at, [start + slope * time for time in at]) == pytest.approx(slope * at[-1], abs=1e-6)


def test_growth_of_too_little_is_none() -> None:
    assert growth([], []) == growth([1.0], [5.0]) == 0.0


def test_a_good_run() -> None:
    found = checks(samples([300.0] * 20 + [500.0] * 10), tally(), GOOD_END, JUDGED_MINUTES, 20)
    assert failed(found) == []
    assert all(check.good for check in found)


def test_memory_that_grows_in_the_last_third_fails_a_long_run_only() -> None:
    grows = samples([500.0] * 20 + [500.0 + 5 * number for number in range(10)])
    assert failed(checks(grows, tally(), GOOD_END, JUDGED_MINUTES, 20)) == ["memory of the runtime is flat"]
    assert failed(checks(grows, tally(), GOOD_END, JUDGED_MINUTES, 50)) == []
    short = checks(grows, tally(), GOOD_END, 1.0, 20)
    assert [check.good for check in short if check.name == "memory of the runtime is flat"] == [None]


def test_each_check_can_fail() -> None:
    bad = Tally()
    bad.error("long", "HTTP 500")
    found = checks(samples([1.0] * 9), bad, End(idle=False, restarted=("runtime",), exit_code=None), 1.0, 20)
    assert len(failed(found)) == 5


async def test_an_answer_is_read() -> None:
    finish = {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]}
    text = {"choices": [{"index": 0, "delta": {"content": "hi"}, "finish_reason": None}]}
    usage = {"choices": [], "usage": {"completion_tokens": 1}}
    assert await events(lines(text, finish, usage), 0.0) == ([("hi", "stop")], 1)
    other = {"choices": [{"index": 1, "delta": {"content": "ho"}, "finish_reason": "length"}]}
    assert await events(lines(text, other, finish, usage), 0.0) == ([("hi", "stop"), ("ho", "length")], 1)
    with pytest.raises(BadAnswerError, match="cut off"):
        await events(lines(text, end=""), 0.0)
    with pytest.raises(BadAnswerError, match="internal_error"):
        await events(lines(text, {"error": {"code": "internal_error"}}), 0.0)
