import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from mantler.errors import ErrorCode, MantlerError
from mantler.messages import FinishReason, SamplingParams
from runtime_server.engine.scheduler import Scheduler, Step, longest_chunk
from runtime_server.engine.sequence import Sequence
from tests.fake_backend import continuation, next_token

GREEDY = SamplingParams(temperature=0.0)


def sequence(prompt: int, max_tokens: int, *, first: int = 1, end_ids: frozenset[int] = frozenset()) -> Sequence:
    return Sequence(
        prompt_ids=tuple(range(first, first + prompt)), sampling=GREEDY, seed=0, max_tokens=max_tokens, end_ids=end_ids
    )


def run(scheduler: Scheduler, step: Step) -> None:
    """Executes a step with the fake backend's function of all tokens."""
    tokens = []
    for work in step.work:
        if work.samples:
            item = work.sequence
            tokens.append(next_token([*item.prompt_ids, *item.output_ids]))
    scheduler.commit(step, tokens)


def test_a_prompt_is_cut_by_its_length_only() -> None:
    scheduler = Scheduler(slots=1, max_queue=0, chunk_tokens=16)
    scheduler.add(sequence(41, 2))
    spans = []
    while not scheduler.idle:
        step = scheduler.schedule()
        spans += [(work.start, work.stop, work.samples) for work in step.work]
        run(scheduler, step)
    assert spans == [(0, 16, False), (16, 32, False), (32, 41, True), (41, 42, True)]


@pytest.mark.parametrize(("length", "chunks"), [(1, [1]), (24, [24]), (25, [16, 9]), (40, [16, 24]), (41, [16, 16, 9])])
def test_a_short_rest_joins_the_chunk_before_it(length: int, chunks: list[int]) -> None:
    scheduler = Scheduler(slots=1, max_queue=0, chunk_tokens=16)
    scheduler.add(sequence(length, 1))
    sizes = []
    while not scheduler.idle:
        step = scheduler.schedule()
        sizes += [work.stop - work.start for work in step.work]
        run(scheduler, step)
    assert sizes == chunks


def test_decodes_run_beside_the_chunks_of_a_long_prompt() -> None:
    scheduler = Scheduler(slots=2, max_queue=0, chunk_tokens=16)
    short, long = sequence(4, 100), sequence(64, 4)
    scheduler.add(short)
    run(scheduler, scheduler.schedule())
    scheduler.add(long)
    for _ in range(4):
        before = len(short.output_ids)
        run(scheduler, scheduler.schedule())
        assert len(short.output_ids) == before + 1
    assert len(long.output_ids) == 1


def test_a_full_queue_refuses_and_changes_nothing() -> None:
    scheduler = Scheduler(slots=1, max_queue=1, chunk_tokens=16)
    scheduler.add(sequence(4, 4))
    scheduler.add(sequence(4, 4))
    with pytest.raises(MantlerError) as refused:
        scheduler.add(sequence(4, 4))
    assert refused.value.code is ErrorCode.QUEUE_FULL
    assert (scheduler.waiting, scheduler.running) == (2, 0)
    run(scheduler, scheduler.schedule())
    assert (scheduler.waiting, scheduler.running) == (1, 1)


def test_an_end_token_ends_the_sequence() -> None:
    answer = continuation(range(1, 5), 8)
    item = sequence(4, 8, end_ids=frozenset({answer[2]}))
    scheduler = Scheduler(slots=1, max_queue=0, chunk_tokens=16)
    scheduler.add(item)
    while not scheduler.idle:
        run(scheduler, scheduler.schedule())
    assert item.output_ids == answer[:3]


def test_a_cancelled_sequence_gives_its_token_to_nobody() -> None:
    scheduler = Scheduler(slots=1, max_queue=0, chunk_tokens=16)
    item = sequence(4, 8)
    scheduler.add(item)
    step = scheduler.schedule()
    scheduler.cancel(item)
    assert scheduler.commit(step, [1]) == []
    assert scheduler.schedule().work == ()
    assert scheduler.idle


def test_drop_all_frees_every_slot() -> None:
    scheduler = Scheduler(slots=2, max_queue=2, chunk_tokens=16)
    items = [sequence(4, 8) for _ in range(3)]
    for item in items:
        scheduler.add(item)
    scheduler.schedule()
    assert set(map(id, scheduler.drop_all())) == set(map(id, items))
    assert scheduler.idle
    scheduler.add(sequence(4, 1))
    assert len(scheduler.schedule().work) == 1


@given(st.lists(st.tuples(st.integers(1, 60), st.integers(1, 8)), min_size=1, max_size=20), st.integers(1, 4))
def test_everybody_gets_the_tokens_they_get_alone(sizes: list[tuple[int, int]], slots: int) -> None:
    scheduler = Scheduler(slots=slots, max_queue=20, chunk_tokens=16)
    items = [sequence(prompt, tokens, first=i * 100) for i, (prompt, tokens) in enumerate(sizes)]
    for item in items:
        scheduler.add(item)
    steps = 0
    while not scheduler.idle:
        run(scheduler, scheduler.schedule())
        steps += 1
        assert steps < 2000, "somebody starves"
    for item in items:
        assert item.output_ids == continuation(item.prompt_ids, item.max_tokens)


class Life(RuleBasedStateMachine):
    """Adds, cancels and steps in any order."""

    SLOTS, QUEUE, CHUNK = 3, 4, 16

    def __init__(self) -> None:
        super().__init__()
        self.scheduler = Scheduler(slots=self.SLOTS, max_queue=self.QUEUE, chunk_tokens=self.CHUNK)
        self.alive: list[Sequence] = []
        self.in_flight: Step | None = None

    @rule(prompt=st.integers(1, 50), tokens=st.integers(1, 5))
    def add(self, prompt: int, tokens: int) -> None:
        item = sequence(prompt, tokens)
        room = self.QUEUE + self.SLOTS - self.scheduler.running
        if self.scheduler.waiting < room:
            self.scheduler.add(item)
            self.alive.append(item)
        else:
            with pytest.raises(MantlerError):
                self.scheduler.add(item)

    @precondition(lambda self: self.alive)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        item = data.draw(st.sampled_from(self.alive))
        self.scheduler.cancel(item)
        self.alive.remove(item)

    @precondition(lambda self: self.in_flight is None)
    @rule()
    def begin(self) -> None:
        step = self.scheduler.schedule()
        self.in_flight = step
        slots = [work.slot for work in step.work]
        assert len(slots) == len(set(slots))
        assert all(0 <= slot < self.SLOTS for slot in slots)
        chunks = [work for work in step.work if work.start < len(work.sequence.prompt_ids)]
        assert len(chunks) <= 1
        assert all(work.stop - work.start <= longest_chunk(self.CHUNK) for work in chunks)
        decoding = [item for item in self.alive if item.slot is not None and not item.prefilling]
        assert {id(item) for item in decoding} <= {id(work.sequence) for work in step.work}, "a decode was left out"
        ids = {id(item) for item in self.alive}
        assert all(id(work.sequence) in ids for work in step.work), "a cancelled sequence runs"

    @precondition(lambda self: self.in_flight is not None)
    @rule()
    def end(self) -> None:
        assert self.in_flight is not None
        tokens = [7 for work in self.in_flight.work if work.samples]
        finished = [item for item in self.scheduler.commit(self.in_flight, tokens) if item.finish is not None]
        for item in finished:
            assert item.finish is FinishReason.LENGTH
            self.alive.remove(item.sequence)
        self.in_flight = None

    @invariant()
    def slots_are_held_by_who_runs(self) -> None:
        assert self.scheduler.running <= self.SLOTS
        held = [item.slot for item in self.alive if item.slot is not None]
        assert len(held) == len(set(held))

    def teardown(self) -> None:
        if self.in_flight is not None:
            self.end()
        for _ in range(200):
            self.begin()
            self.end()
        assert self.scheduler.idle
        assert not self.alive
        for _ in range(self.SLOTS):
            self.scheduler.add(sequence(1, 1))
        assert len(self.scheduler.schedule().admitted) == self.SLOTS, "a slot leaked"


TestLife = Life.TestCase
TestLife.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)
