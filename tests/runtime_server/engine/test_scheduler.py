from collections.abc import Iterable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mantler.errors import ErrorCode, MantlerError
from mantler.messages import FinishReason, SamplingParams
from runtime_server.engine.blocks import BlockPool
from runtime_server.engine.sampler import sample
from runtime_server.engine.scheduler import IDLE_CHUNKS, OVERTAKES, Sampled, Scheduler, Step
from runtime_server.engine.sequence import Sequence
from tests.fake_backend import FakeBackend, continuation

GREEDY = SamplingParams(temperature=0.0)
BLOCK = 4
CHUNK = 16


def sequence(
    prompt: int,
    max_tokens: int,
    *,
    first: int = 1,
    end_ids: frozenset[int] = frozenset(),
    priority: int = 0,
    salt: str | None = None,
) -> Sequence:
    return Sequence(
        prompt_ids=range(first, first + prompt),
        sampling=GREEDY,
        seed=0,
        max_tokens=max_tokens,
        end_ids=end_ids,
        priority=priority,
        cache_salt=salt,
    )


class Machine:
    """A scheduler with a pool and a backend that checks every step."""

    def __init__(self, *, blocks: int = 100, max_batch: int = 4, max_queue: int = 100, chunk: int = CHUNK) -> None:
        self.max_batch, self.chunk = max_batch, chunk
        self.pool = BlockPool(blocks, BLOCK)
        self.scheduler = Scheduler(self.pool, max_batch=max_batch, max_queue=max_queue, prefill_chunk=chunk)
        largest = max(max_batch + chunk, IDLE_CHUNKS * chunk)
        self.backend = FakeBackend(blocks=blocks, block_tokens=BLOCK, max_step_tokens=largest)

    def add(self, *items: Sequence) -> None:
        for item in items:
            self.scheduler.add(item)

    def begin(self) -> Step:
        """Schedules a step and checks what holds for every one."""
        step = self.scheduler.schedule()
        sizes = [len(chunk.token_ids) for chunk in step.chunks]
        assert len({id(item) for item in step.sequences}) == len(sizes) <= self.max_batch
        prompts = sum(size for size in sizes if size > 1)
        decodes = any(item.remaining == 1 and item.output_tokens and not item.preemptions for item in step.sequences)
        assert prompts <= step.prompt_tokens <= self.chunk * (1 if decodes else 4)
        return step

    def end(self, step: Step) -> list[Sampled]:
        """Runs the step and commits it."""
        if not step.chunks:
            return self.scheduler.commit(step, [])
        logits = self.backend.run(step.chunks)
        wanting = [item for item, chunk in zip(step.sequences, step.chunks, strict=True) if chunk.wants_logits]
        return self.scheduler.commit(step, sample(logits, [item.sampling_row() for item in wanting]))

    def step(self) -> Step:
        step = self.begin()
        self.end(step)
        return step

    def finish(self, limit: int = 3000) -> None:
        """Steps until nothing is left."""
        steps = 0
        while not self.scheduler.idle:
            # A step may be empty where it frees what the last cancelled sequence held.
            assert self.step().chunks or self.scheduler.idle, "nothing runs though something waits"
            steps += 1
            assert steps < limit, "somebody starves"
        self.check_free()

    def check_free(self) -> None:
        """Nobody holds a block."""
        assert self.pool.available == self.pool.blocks
        assert all(self.pool.holders(block) == 0 for block in range(self.pool.blocks))


def sizes(step: Step) -> list[int]:
    return [len(chunk.token_ids) for chunk in step.chunks]


def check_answers(items: Iterable[Sequence]) -> None:
    for item in items:
        prompt = item.token_ids[: item.prompt_tokens].tolist()
        assert item.output_ids == continuation(prompt, item.max_tokens)


def test_a_lone_prompt_gets_large_chunks_that_end_with_blocks() -> None:
    machine = Machine()
    item = sequence(150, 3)
    machine.add(item)
    steps = [machine.step() for _ in range(5)]
    assert [sizes(step) for step in steps] == [[64], [64], [22], [1], [1]]
    assert [step.prompt_tokens for step in steps] == [64, 64, 22, 0, 0]
    check_answers([item])


def test_while_somebody_decodes_prompts_get_one_chunk_in_all() -> None:
    machine = Machine()
    decoding = sequence(4, 100)
    machine.add(decoding)
    machine.step()
    machine.add(sequence(39, 2, first=100), sequence(25, 2, first=200))
    for expected in ([1, 16], [1, 16], [1, 7, 8], [1, 1, 16], [1, 1]):
        before = decoding.output_tokens
        assert sizes(machine.step()) == expected
        assert decoding.output_tokens == before + 1
    machine.finish()


def test_several_prompts_share_a_step() -> None:
    machine = Machine(max_batch=8)
    items = [sequence(10, 2, first=100 * i) for i in range(8)]
    machine.add(*items)
    # 64 tokens: the seventh prompt gets one block of its ten tokens.
    assert sizes(machine.step()) == [10] * 6 + [4]
    machine.finish()
    check_answers(items)


def test_a_short_prompt_overtakes_a_long_one_that_goes_on() -> None:
    machine = Machine()
    machine.add(sequence(4, 100))
    machine.step()
    long, short = sequence(100, 2, first=100), sequence(8, 2, first=300)
    machine.add(long, short)
    assert sizes(machine.step()) == [1, 8, 8]
    assert (short.output_tokens, long.computed) == (1, 8)
    machine.finish()


def test_short_prompts_without_end_do_not_stop_a_long_one() -> None:
    machine = Machine(max_batch=4, chunk=8)
    long = sequence(80, 1, first=50)
    machine.add(sequence(4, 100), long)
    for i in range(24):
        machine.add(*(sequence(4, 1, first=1000 + 20 * i + 10 * j) for j in range(2)))
        machine.step()
    assert long.output_tokens == 1


def test_a_full_queue_refuses_and_changes_nothing() -> None:
    machine = Machine(max_batch=1, max_queue=1)
    scheduler = machine.scheduler
    machine.add(sequence(4, 4), sequence(4, 4))
    with pytest.raises(MantlerError) as refused:
        machine.add(sequence(4, 4))
    assert refused.value.code is ErrorCode.QUEUE_FULL
    assert (scheduler.waiting, scheduler.running) == (2, 0)
    machine.step()
    assert (scheduler.waiting, scheduler.running) == (1, 1)


def test_what_can_never_fit_is_refused_as_a_bug() -> None:
    machine = Machine(blocks=4)
    machine.add(sequence(8, 9))
    with pytest.raises(ValueError, match="cannot hold"):
        machine.add(sequence(8, 10))
    machine.finish()


def test_an_end_token_ends_the_sequence() -> None:
    answer = continuation(range(1, 5), 8)
    item = sequence(4, 8, end_ids=frozenset({answer[2]}))
    machine = Machine()
    machine.add(item)
    machine.finish()
    assert item.output_ids == answer[:3]


def test_a_cancelled_sequence_gives_its_token_to_nobody() -> None:
    machine = Machine()
    item = sequence(4, 8)
    machine.add(item)
    step = machine.begin()
    machine.scheduler.cancel(item)
    machine.scheduler.cancel(item)
    assert machine.pool.available < machine.pool.blocks, "blocks of a running step are free"
    assert machine.end(step) == []
    assert machine.step().chunks == []
    machine.check_free()


def test_drop_all_frees_every_block() -> None:
    machine = Machine(max_batch=2)
    items = [sequence(4, 8) for _ in range(3)]
    machine.add(*items)
    machine.begin()
    assert set(map(id, machine.scheduler.drop_all())) == set(map(id, items))
    assert machine.scheduler.idle
    machine.check_free()


# --- prefix cache


def test_a_repeated_prompt_computes_its_last_block_only() -> None:
    machine = Machine()
    first, second = sequence(40, 4), sequence(40, 4)
    machine.add(first)
    machine.finish()
    machine.add(second)
    assert sizes(machine.step()) == [4]
    machine.finish()
    assert (first.cached_tokens, second.cached_tokens) == (0, 36)
    assert machine.scheduler.cached_tokens == 36
    check_answers([first, second])


def test_an_answer_is_cached_for_the_next_turn() -> None:
    machine = Machine()
    first = sequence(10, 11)
    machine.add(first)
    machine.finish()
    turn = Sequence(prompt_ids=[*first.token_ids, 7, 8, 9], sampling=GREEDY, seed=0, max_tokens=3)
    machine.add(turn)
    machine.finish()
    # The last token of the answer was never computed: 20 of 21 tokens, five blocks.
    assert turn.cached_tokens == 20
    check_answers([turn])


def test_sequences_that_come_together_compute_a_common_prefix_once() -> None:
    machine = Machine(max_batch=8)
    prefix = list(range(100))
    items = [Sequence(prompt_ids=[*prefix, 200 + i, 250 + i], sampling=GREEDY, seed=0, max_tokens=5) for i in range(8)]
    machine.add(*items)
    machine.finish()
    computed = sum(len(chunk.token_ids) for step in machine.backend.steps for chunk in step)
    assert computed == 100 + 8 * (2 + 4)
    assert [item.cached_tokens for item in items] == [0] + [100] * 7
    check_answers(items)


def test_running_sequences_hold_the_same_blocks() -> None:
    machine = Machine()
    first, second = sequence(20, 20), sequence(20, 20)
    machine.add(first)
    machine.step()
    machine.add(second)
    machine.step()
    # The fifth block held the last token of the prompt and was computed twice; one of the two was dropped.
    assert second.block_ids[:5] == first.block_ids[:5]
    assert [machine.pool.holders(block) for block in first.block_ids] == [2] * 5 + [1]
    machine.finish()
    check_answers([first, second])


@pytest.mark.parametrize(("one", "other", "cached"), [("a", "a", 36), ("a", "b", 0), ("a", None, 0), (None, None, 36)])
def test_a_salt_keeps_prefixes_apart(one: str | None, other: str | None, cached: int) -> None:
    machine = Machine()
    machine.add(sequence(40, 2, salt=one))
    machine.finish()
    item = sequence(40, 2, salt=other)
    machine.add(item)
    machine.finish()
    assert item.cached_tokens == cached
    check_answers([item])


def test_the_cache_gives_way_to_what_runs() -> None:
    machine = Machine(blocks=10)
    for i in range(5):
        item = sequence(30, 8, first=100 * i)
        machine.add(item)
        machine.finish()
        check_answers([item])
    assert machine.pool.cached > 0
    again = sequence(30, 8, first=400)
    machine.add(again)
    machine.finish()
    assert again.cached_tokens == 28


# --- preemption


def test_the_last_in_rank_gives_way_and_its_tokens_stay_the_same() -> None:
    machine = Machine(blocks=14, max_batch=3)
    items = [sequence(8, 30, first=100 * i) for i in range(3)]
    machine.add(*items)
    finished: list[Sequence] = []
    while not machine.scheduler.idle:
        finished += [item.sequence for item in machine.end(machine.begin()) if item.finish]
    assert finished == items
    assert items[0].preemptions == 0
    assert machine.scheduler.preemptions == items[1].preemptions + items[2].preemptions > 0
    check_answers(items)
    machine.check_free()


def test_a_preempted_sequence_is_not_admitted_a_second_time_nor_cached() -> None:
    machine = Machine(blocks=14, max_batch=3)
    items = [sequence(8, 30, first=100 * i) for i in range(3)]
    machine.add(*items)
    admitted = []
    while not machine.scheduler.idle:
        admitted += machine.step().admitted
    assert admitted == items
    assert machine.scheduler.preemptions > 0
    assert [item.cached_tokens for item in items] == [0, 0, 0]


def test_nobody_is_admitted_only_to_be_preempted() -> None:
    machine = Machine(blocks=16, max_batch=4)
    running, late = sequence(36, 8), sequence(20, 4, first=100)
    machine.add(running)
    machine.step()
    machine.add(late)
    machine.finish()
    assert machine.scheduler.preemptions == 0


def test_prompts_that_block_each_other_are_resolved_in_order() -> None:
    machine = Machine(blocks=12, max_batch=3, chunk=4)
    items = [sequence(44, 4, first=100 * i) for i in range(3)]
    machine.add(*items)
    machine.finish()
    check_answers(items)
    assert items[0].preemptions == 0


# --- order


def order_of_start(machine: Machine) -> list[Sequence]:
    started = []
    while not machine.scheduler.idle:
        started += machine.step().admitted
    return started


def test_priority_goes_before_age_and_age_before_nothing() -> None:
    machine = Machine(max_batch=1)
    low, first, high, second = (sequence(4, 2, priority=p) for p in (1, 0, -1, 0))
    machine.add(low, first, high, second)
    assert order_of_start(machine) == [high, first, second, low]


def test_a_low_priority_is_overtaken_a_bounded_number_of_times() -> None:
    machine = Machine(max_batch=1)
    low = sequence(4, 1, priority=2)
    machine.add(sequence(4, 1), low)
    overtaken = 0
    while not low.output_tokens:
        machine.add(sequence(4, 1))
        machine.step()
        overtaken += 1
    assert overtaken <= 2 * OVERTAKES + 2


def test_the_lowest_priority_is_preempted_first() -> None:
    machine = Machine(blocks=14, max_batch=3)
    low, *others = (sequence(8, 30, first=100 * i, priority=p) for i, p in enumerate((5, 0, 0)))
    machine.add(low, *others)
    machine.step()
    while not machine.scheduler.preemptions:
        machine.step()
    assert (low.preemptions, *(item.preemptions for item in others)) == (1, 0, 0)
    machine.finish()
    check_answers([low, *others])


def choices(prompt: int, max_tokens: int, n: int, first: int = 1) -> list[Sequence]:
    return [
        Sequence(prompt_ids=range(first, first + prompt), sampling=GREEDY, seed=0, max_tokens=max_tokens, choice=choice)
        for choice in range(n)
    ]


def test_later_requests_come_between_the_choices_of_one() -> None:
    machine = Machine(max_batch=1)
    many, others = choices(4, 2, 4), [sequence(4, 2) for _ in range(2)]
    machine.scheduler.add(*many)
    machine.add(*others)
    assert order_of_start(machine) == [many[0], many[1], others[0], many[2], others[1], many[3]]


def test_choices_queue_together_or_not_at_all() -> None:
    machine = Machine(max_batch=2, max_queue=1)
    with pytest.raises(MantlerError) as refused:
        machine.scheduler.add(*choices(4, 2, 4))
    assert refused.value.code is ErrorCode.QUEUE_FULL
    assert machine.scheduler.idle
    machine.scheduler.add(*choices(4, 2, 3))
    machine.finish()


# --- everything at once

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
