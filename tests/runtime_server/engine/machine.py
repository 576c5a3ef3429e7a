"""A scheduler on a fake backend, for its tests, with a check of every step."""

from __future__ import annotations

from collections.abc import Iterable

from mantler.messages import SamplingParams
from runtime_server.engine.blocks import BlockPool
from runtime_server.engine.sampler import sample
from runtime_server.engine.scheduler import IDLE_CHUNKS, Sampled, Scheduler, Step
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
