"""The workloads, on a server that only writes down what it is asked."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import pytest

from bench.prompts import TEMPLATE_TOKENS, prompt
from bench.stream import Request, Stream
from bench.workloads import (
    LONG_TOKENS,
    PREFIX_TOKENS,
    Chat,
    LongPrompt,
    Mixed,
    Plan,
    SharedPrefix,
    Workload,
    arrival_window,
)


class Recorder:
    """Answers at once, and counts the requests that are open."""

    def __init__(self, *, fails: bool = False) -> None:
        self.asked: list[Request] = []
        self.most = 0
        self._open = 0
        self._fails = fails

    async def ask(self, request: Request, on_first: Callable[[], None]) -> Stream:
        self.asked.append(request)
        self._open += 1
        self.most = max(self.most, self._open)
        await asyncio.sleep(0)
        self._open -= 1
        if self._fails:
            return Stream(0.0, request.label, error="HTTP 500")
        on_first()
        return Stream(0.0, request.label, [1.0], 1.0, tokens=request.max_tokens)


def tokens(request: Request) -> int:
    return TEMPLATE_TOKENS + len(request.system.split()) + len(request.user.split())


@pytest.mark.parametrize("workload", Plan(mixed_interval_s=0.0).workloads(), ids=lambda workload: workload.name)
async def test_the_same_seed_asks_the_same_and_another_one_nothing_of_it(workload: Workload) -> None:
    recorders = [Recorder() for _ in range(3)]
    for recorder, seed in zip(recorders, ("a", "a", "b"), strict=True):
        await workload.run(recorder.ask, seed)
    first, again, other = ({(r.system, r.user) for r in recorder.asked} for recorder in recorders)
    assert first == again
    assert not first & other
    assert recorders[0].most <= workload.serving.slots


async def test_chat_keeps_its_streams_busy_with_different_prompts() -> None:
    recorder = Recorder()
    streams = await Chat(4, 10).run(recorder.ask, "seed")
    assert len(streams) == len({request.user for request in recorder.asked}) == 10
    assert len({request.system for request in recorder.asked}) == 10
    assert recorder.most == 4
    assert {tokens(request) for request in recorder.asked} == {128}


async def test_long_prompts_come_one_after_the_other() -> None:
    recorder = Recorder()
    await LongPrompt(3).run(recorder.ask, "seed")
    assert recorder.most == 1
    assert [tokens(request) for request in recorder.asked] == [LONG_TOKENS] * 3


async def test_a_prefix_is_asked_again_and_with_other_ends() -> None:
    recorder = Recorder()
    await SharedPrefix(2).run(recorder.ask, "seed")
    one, other = recorder.asked[:5], recorder.asked[5:]
    assert [request.label for request in one] == ["first", "again", "again", "other end", "other end"]
    assert one[0].user == one[1].user == one[2].user
    assert len({request.user for request in one}) == 3
    assert [len(request.system.split()) for request in one] == [PREFIX_TOKENS] * 5
    assert {request.system for request in one} & {request.system for request in other} == set()


async def test_long_prompts_arrive_while_the_others_decode() -> None:
    decoding, arrived = 0, []
    done = asyncio.Event()

    async def ask(request: Request, on_first: Callable[[], None]) -> Stream:
        nonlocal decoding
        if request.label == Mixed.long_label:
            arrived.append(decoding)
            if len(arrived) == 2:
                done.set()
        else:
            decoding += 1
            on_first()
            await done.wait()
        return Stream(0.0, request.label)

    streams = await Mixed(3, 2, 0.0).run(ask, "seed")
    assert arrived == [3, 3]
    assert [stream.label for stream in streams] == ["streams"] * 3 + [Mixed.long_label] * 2


async def test_mixed_does_not_wait_for_requests_that_failed() -> None:
    streams = await asyncio.wait_for(Mixed(3, 2, 0.0).run(Recorder(fails=True).ask, "seed"), 10)
    assert [stream.error for stream in streams] == ["HTTP 500"] * 5


def test_the_window_is_from_the_first_arrival_to_the_last_first_text() -> None:
    long = [Stream(2.0, Mixed.long_label, [5.0, 9.0]), Stream(3.0, Mixed.long_label, [7.0])]
    assert arrival_window([Stream(0.0, "streams", [1.0]), *long]) == (2.0, 7.0)
    assert arrival_window([Stream(0.0, "streams", [1.0])]) is None


def test_workloads_that_can_share_a_server_are_neighbours() -> None:
    servings = [workload.serving for workload in Plan().workloads()]
    changes = sum(one != other for one, other in itertools.pairwise(servings))
    assert changes == len(set(servings)) - 1


def test_a_plan_holds_what_was_asked_for() -> None:
    names = [workload.name for workload in Plan(concurrency=(2, 8), kinds=("chat", "long")).workloads()]
    assert sorted(names) == ["1500-token prompt, 1 stream", "chat, 2 streams", "chat, 8 streams"]


def test_prompts_have_the_length_that_was_asked_for() -> None:
    system, user = prompt(128, "seed")
    assert len(f"{system} {user}".split()) == 128 - TEMPLATE_TOKENS
