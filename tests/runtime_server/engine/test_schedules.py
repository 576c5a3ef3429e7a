"""Requests of every kind at once, in any order."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mantler.errors import MantlerError
from mantler.messages import FinishReason
from runtime_server.engine.scheduler import Step
from runtime_server.engine.sequence import Sequence
from tests.runtime_server.engine.machine import GREEDY, Machine, check_answers

prompts = st.builds(
    # Few beginnings, so that prefixes are often shared and sometimes part within a block.
    lambda start, shared, own, tail: [*range(start, start + shared), *([own] * tail)],
    st.sampled_from([0, 0, 50]),
    st.integers(0, 30),
    st.integers(100, 103),
    st.integers(1, 12),
)
requests = st.tuples(prompts, st.integers(1, 12), st.sampled_from([-1, 0, 0, 0, 2]), st.sampled_from([None, "a"]))
ns = st.sampled_from([1, 1, 1, 2, 5])


@given(
    st.lists(requests, min_size=1, max_size=12),
    st.integers(1, 5),
    st.sampled_from([14, 20, 200]),
    st.sampled_from([4, 8, 16]),
)
@settings(deadline=None)
def test_everybody_gets_the_tokens_they_get_alone(
    asked: list[tuple[list[int], int, int, str | None]], max_batch: int, blocks: int, chunk: int
) -> None:
    machine = Machine(blocks=blocks, max_batch=max_batch, chunk=chunk)
    items = [
        Sequence(prompt_ids=prompt, sampling=GREEDY, seed=0, max_tokens=tokens, priority=priority, cache_salt=salt)
        for prompt, tokens, priority, salt in asked
    ]
    machine.add(*items)
    machine.finish()
    check_answers(items)


class Life(RuleBasedStateMachine):
    """Adds, cancels and steps in any order, with few blocks."""

    BATCH, QUEUE, BLOCKS = 3, 4, 16

    def __init__(self) -> None:
        super().__init__()
        self.machine = Machine(blocks=self.BLOCKS, max_batch=self.BATCH, max_queue=self.QUEUE, chunk=8)
        self.scheduler = self.machine.scheduler
        self.alive: list[Sequence] = []
        self.in_flight: Step | None = None

    @rule(asked=requests, n=ns)
    def add(self, asked: tuple[list[int], int, int, str | None], n: int) -> None:
        prompt, tokens, priority, salt = asked
        items = [
            Sequence(
                prompt_ids=prompt,
                sampling=GREEDY,
                seed=0,
                max_tokens=tokens,
                choice=choice,
                priority=priority,
                cache_salt=salt,
            )
            for choice in range(n)
        ]
        if self.scheduler.waiting + n <= self.QUEUE + self.BATCH - self.scheduler.running:
            self.scheduler.add(*items)
            self.alive += items
        else:
            with pytest.raises(MantlerError):
                self.scheduler.add(*items)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.scheduler.cancel(self.alive.pop(data.draw(st.integers(0, len(self.alive) - 1))))

    @precondition(lambda self: self.in_flight is None)
    @rule()
    def begin(self) -> None:
        self.in_flight = step = self.machine.begin()
        ids = {id(item) for item in self.alive}
        assert all(id(item) in ids for item in step.sequences), "a cancelled sequence runs"
        assert bool(step.chunks) == bool(self.alive), "nothing runs though something waits"
        if self.alive:
            first = min((item for item in self.alive if item.block_ids), key=lambda item: item.rank)
            assert first in step.sequences or first.remaining > 1, "the first in rank does not decode"

    @precondition(lambda self: self.in_flight is not None)
    @rule()
    def end(self) -> None:
        assert self.in_flight is not None
        for item in self.machine.end(self.in_flight):
            if item.finish is not None:
                assert item.finish is FinishReason.LENGTH
                check_answers([item.sequence])
                self.alive.remove(item.sequence)
        self.in_flight = None

    @invariant()
    def blocks_are_held_by_who_runs(self) -> None:
        assert self.scheduler.running <= self.BATCH
        if self.in_flight is None:
            return
        running = [*self.in_flight.sequences, *(item for item in self.alive if item not in self.in_flight.sequences)]
        for block in range(self.BLOCKS):
            held = sum(block in item.block_ids for item in running)
            assert self.machine.pool.holders(block) >= held

    def teardown(self) -> None:
        if self.in_flight is not None:
            self.end()
        self.machine.finish()
        check_answers(self.alive)


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=50, deadline=None)
