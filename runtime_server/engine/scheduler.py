"""Decides what runs in each step. Pure: no thread, no clock, no device.

There is no phase of prompts and no phase of decoding. Every sequence has tokens, and some of them are computed; a step
computes the last token of each sequence that lacks only that one, and beside them pieces of the prompts that lack
more. Blocks of the KV cache are taken as tokens need them. Where none is left, the sequence that is last in rank gives
its blocks up and is computed again later.

Rank is the order of arrival, shifted by priority. The choices of one request rank as if one had come with each of the
requests after it, so that a request of many choices does not keep the others waiting for all of them; the first
computes the prompt, and the others find its blocks. Rank never changes, which is what makes this live: whoever needs a
block can only take it from those behind it, so the first in rank always goes on, and someone else is first once it
has finished. A block is freed and taken in :meth:`Scheduler.schedule` and :meth:`Scheduler.commit` only, and not while
a step runs, unless another is scheduled ahead of its outcome: such a device runs its steps in order.
"""

from __future__ import annotations

from array import array
from bisect import bisect_left, insort
from collections.abc import Mapping
from collections.abc import Sequence as Items
from dataclasses import dataclass, field
from operator import attrgetter

from mantler.errors import ErrorCode, MantlerError
from mantler.messages import FinishReason
from runtime_server.backends.base import Chunk
from runtime_server.engine.blocks import BlockPool
from runtime_server.engine.logprobs import Ranking
from runtime_server.engine.sequence import Sequence

IDLE_CHUNKS = 4
"""A step in which nobody waits for their next token may compute this many times as much of the prompts."""
OVERTAKES = 32
"""How many later requests of the next better priority may go first. It bounds how long anybody waits."""
GROWTH_BLOCKS = 2
"""Blocks per running sequence that stay free when another one is admitted, so that it is not preempted at once."""

_rank = attrgetter("rank")
_NO_RANKINGS: Mapping[int, Ranking] = {}


@dataclass(slots=True)
class Step:
    """What to run next: ``chunks`` and, in the same order, whose they are."""

    admitted: list[Sequence] = field(default_factory=list)
    """Sequences that run for the first time in this step."""
    sequences: list[Sequence] = field(default_factory=list)
    chunks: list[Chunk] = field(default_factory=list)
    prompt_tokens: int = 0
    """Tokens of the chunks that are longer than one."""


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token that a sequence got. Not for the client where it is one of the sequence's ``end_ids``."""

    sequence: Sequence
    token_id: int
    finish: FinishReason | None
    ranking: Ranking | None = None


class Scheduler:
    """Queue, blocks and running sequences of one model.

    Args:
        pool: the device's blocks.
        max_batch: sequences that run at the same time.
        max_queue: sequences that may wait beyond the free places.
        prefill_chunk: prompt tokens per step while others decode, at least one block.
    """

    def __init__(self, pool: BlockPool, *, max_batch: int, max_queue: int, prefill_chunk: int) -> None:
        if prefill_chunk < pool.block_tokens:
            raise ValueError(f"prefill_chunk is {prefill_chunk}, less than one block of {pool.block_tokens} tokens")
        self._pool = pool
        self._max_batch = max_batch
        self._max_queue = max_queue
        self._prefill_chunk = prefill_chunk
        # Both in the order of rank.
        self._waiting: list[Sequence] = []
        self._running: list[Sequence] = []
        self._requests = 0
        self._sequences = 0
        self.preemptions = 0
        """How often a sequence gave its blocks up, since the beginning."""
        self.cached_tokens = 0
        """Tokens of prompts that were found in the cache, since the beginning."""

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting and not self._running

    @property
    def waiting(self) -> int:
        """Sequences that wait, preempted ones included."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences that run."""
        return len(self._running)

    @property
    def held_tokens(self) -> int:
        """Tokens of all sequences."""
        return sum(len(sequence.token_ids) for sequences in (self._running, self._waiting) for sequence in sequences)

    def add(self, *choices: Sequence) -> None:
        """Queues the choices of one request, all or none.

        Raises ``MantlerError`` QUEUE_FULL where there is no room, and changes nothing then. Prompt and output of each
        must fit the pool; ``ValueError`` otherwise.
        """
        if any(self._pool.needed(s.prompt_tokens + s.max_tokens - 1) > self._pool.blocks for s in choices):
            raise ValueError("a sequence that all blocks together cannot hold")
        if len(self._waiting) + len(choices) > self._max_queue + max(0, self._max_batch - len(self._running)):
            raise MantlerError(
                ErrorCode.QUEUE_FULL,
                f"{self.running} requests are running and {self.waiting} waiting; the queue is full.",
                retry_after_s=1.0,
            )
        for sequence in choices:
            sequence.rank = (self._requests + sequence.choice + OVERTAKES * sequence.priority, self._sequences)
            self._sequences += 1
            insort(self._waiting, sequence, key=_rank)
        self._requests += 1

    def cancel(self, sequence: Sequence) -> None:
        """Forgets a sequence: at once where it waits, before the next step where it runs. Twice is harmless."""
        place = bisect_left(self._waiting, sequence.rank, key=_rank)
        if place < len(self._waiting) and self._waiting[place] is sequence:
            del self._waiting[place]
        else:
            sequence.cancelled = True

    def schedule(self) -> Step:
        """The next step. It has no chunks where there is nothing to do."""
        for sequence in [sequence for sequence in self._running if sequence.cancelled]:
            self._release(sequence)
        step = Step()
        self._admit(step)
        self._decode(step)
        if len(step.chunks) < len(self._running):
            self._prefill(step)
        if self._running and not step.chunks:
            # The first in rank decodes, taking blocks where it must, or has had the blocks for its prompt kept free.
            raise RuntimeError("no running sequence can go on")
        return step

    def schedule_ahead(self, step: Step) -> Step | None:
        """The step after ``step``, which runs now and whose tokens nobody knows yet.

        Each of its sequences decodes the likeliest token of its row; those that end by their length are left out, and
        one that turns out to have ended otherwise was computed in vain. ``None`` where there is more to decide:
        somebody waits for a place that is or will be free, was cancelled, is in its prompt, or lacks a block.
        """
        pairs = list(zip(step.sequences, step.chunks, strict=True))
        held = sum(_holds(*pair) for pair in pairs)
        if held < len(self._running) or any(sequence.cancelled for sequence in self._running):
            return None
        if not all(chunk.wants_logits for chunk in step.chunks):
            return None
        ahead, pool = Step(), self._pool
        for row, (sequence, chunk) in enumerate(pairs):
            start = chunk.start + chunk.count
            if not _holds(sequence, chunk) or start + 1 == sequence.prompt_tokens + sequence.max_tokens:
                continue
            if start == len(sequence.block_ids) * pool.block_tokens:
                if not pool.available:
                    return None
                sequence.block_ids.append(pool.allocate())
            ahead.sequences.append(sequence)
            ahead.chunks.append(Chunk(sequence.block_ids, start, (), True, follows=row))
        if self._waiting and len(ahead.chunks) < self._max_batch:
            return None
        return ahead if ahead.chunks else None

    def commit(
        self, step: Step, token_ids: Items[int], rankings: Mapping[int, Ranking] = _NO_RANKINGS
    ) -> list[Sampled]:
        """Takes the outcome of ``step``: one token for each chunk that wants logits, in their order.

        ``rankings`` are of some of these tokens, by their places. Returns the tokens of the sequences
        that nobody has cancelled meanwhile.
        """
        tokens = enumerate(token_ids)
        sampled = []
        for sequence, chunk in zip(step.sequences, step.chunks, strict=True):
            holds = _holds(sequence, chunk)
            if holds:
                sequence.computed = chunk.start + chunk.count
                self._share(sequence, chunk.start)
            if not chunk.wants_logits:
                continue
            place, token_id = next(tokens)
            if sequence.cancelled or not holds:
                continue
            finish = sequence.append(token_id)
            if finish is not None:
                self._release(sequence)
            sampled.append(Sampled(sequence, token_id, finish, rankings.get(place)))
        return sampled

    def drop_all(self) -> list[Sequence]:
        """Forgets every sequence and returns them. For an engine that stops."""
        dropped = [*self._running, *self._waiting]
        for sequence in list(self._running):
            self._release(sequence)
        self._waiting.clear()
        return dropped

    def _admit(self, step: Step) -> None:
        """Starts waiting sequences, first in rank first, while there are places and blocks for their tokens."""
        while self._waiting and len(self._running) < self._max_batch:
            sequence = self._waiting[0]
            if not self._fits(sequence):
                return
            del self._waiting[0]
            insort(self._running, sequence, key=_rank)
            self._adopt(sequence)
            if not sequence.preemptions:
                step.admitted.append(sequence)

    def _fits(self, sequence: Sequence) -> bool:
        """Whether blocks are left for the tokens of ``sequence`` beside those of the running ones, and some more."""
        pool = self._pool
        missing = pool.needed(len(sequence.token_ids))
        spare = pool.available - GROWTH_BLOCKS * len(self._running)
        for other in self._running:
            spare -= max(0, pool.needed(len(other.token_ids)) - len(other.block_ids))
        if missing <= spare:
            return True
        # Blocks that others hold already cost nothing.
        for number in range(self._findable(sequence)):
            block_id = pool.find(sequence.digest(number, pool.block_tokens))
            if block_id is None:
                break
            missing -= pool.holders(block_id) > 0
        return missing <= spare

    def _decode(self, step: Step) -> None:
        """Adds the sequences that lack one token, first in rank first. What they take room from comes after them."""
        place = 0
        while place < len(self._running):
            sequence = self._running[place]
            place += 1
            if sequence.remaining == 1 and self._make_room(sequence):
                self._add(step, sequence, 1)

    def _make_room(self, sequence: Sequence) -> bool:
        """Gets the block for one more token; False where ``sequence`` was the last in rank and had to give up."""
        pool = self._pool
        if sequence.computed < len(sequence.block_ids) * pool.block_tokens:
            return True
        while not pool.available:
            if self._preempt_last() is sequence:
                return False
        sequence.block_ids.append(pool.allocate())
        return True

    def _prefill(self, step: Step) -> None:
        """Adds chunks of the sequences that lack more than one token."""
        budget = self._prefill_chunk * (1 if step.chunks else IDLE_CHUNKS)
        decodes = len(step.chunks)
        self._share_out(step, [sequence for sequence in self._running if sequence.remaining > 1], budget)
        step.prompt_tokens = sum(len(chunk.token_ids) for chunk in step.chunks[decodes:])

    def _share_out(self, step: Step, prompts: list[Sequence], budget: int) -> None:
        """Divides ``budget`` tokens. The first in rank gets half at least; much shorter ones may overtake it."""
        if not prompts:
            return
        computing: set[bytes] = set()
        first = prompts[0]
        short = [s for s in prompts[1:] if 2 * s.remaining <= first.remaining and s.priority <= first.priority]
        if short:
            short.sort(key=attrgetter("remaining"))
            share = min(budget // 2, budget - self._pool.block_tokens)
            for sequence in short:
                taken = self._chunk(step, sequence, share, computing)
                share, budget = share - taken, budget - taken
        for sequence in prompts:
            if sequence not in short:
                budget -= self._chunk(step, sequence, budget, computing)

    def _chunk(self, step: Step, sequence: Sequence, budget: int, computing: set[bytes]) -> int:
        """Adds the next chunk of a prompt, of ``budget`` tokens at most; returns how many it has.

        It ends with a block or with the prompt. A block that another chunk of this step is ``computing`` is waited
        for: the step after finds it in the cache.
        """
        if budget <= 0:
            return 0
        pool, size = self._pool, self._pool.block_tokens
        self._adopt(sequence)
        start = sequence.computed
        if start // size < self._findable(sequence) and sequence.digest(start // size, size) in computing:
            return 0
        room = (len(sequence.block_ids) + pool.available) * size - start
        count = min(sequence.remaining, budget, room)
        if count < sequence.remaining:
            count -= (start + count) % size
        if count <= 0:
            return 0
        for _ in range(pool.needed(start + count) - len(sequence.block_ids)):
            sequence.block_ids.append(pool.allocate())
        computing.update(sequence.digest(block, size) for block in range(start // size, (start + count) // size))
        self._add(step, sequence, count)
        return count

    def _adopt(self, sequence: Sequence) -> None:
        """Takes the blocks that the cache holds of what ``sequence`` would compute next."""
        pool, size = self._pool, self._pool.block_tokens
        last = self._findable(sequence)
        number = len(sequence.block_ids)
        if sequence.computed != number * size:
            return
        while number < last and (block_id := pool.find(sequence.digest(number, size))) is not None:
            pool.hold(block_id)
            sequence.block_ids.append(block_id)
            number += 1
        found = number * size - sequence.computed
        sequence.computed += found
        if not sequence.preemptions:
            sequence.cached_tokens += found
            self.cached_tokens += found

    def _findable(self, sequence: Sequence) -> int:
        """How many blocks of ``sequence`` may come out of the cache: logits are not in it, so the last token never."""
        return (len(sequence.token_ids) - 1) // self._pool.block_tokens

    def _share(self, sequence: Sequence, start: int) -> None:
        """Lets others find the blocks that became full from ``start`` on."""
        size = self._pool.block_tokens
        for number in range(start // size, sequence.computed // size):
            block_id = self._pool.share(sequence.block_ids[number], sequence.digest(number, size))
            sequence.block_ids[number] = block_id

    @staticmethod
    def _add(step: Step, sequence: Sequence, count: int) -> None:
        start = sequence.computed
        token_ids = sequence.token_ids[start : start + count]
        step.sequences.append(sequence)
        step.chunks.append(Chunk(sequence.block_ids, start, token_ids, count == sequence.remaining))

    def _preempt_last(self) -> Sequence:
        sequence = self._running[-1]
        self._release(sequence)
        sequence.computed = 0
        sequence.preemptions += 1
        self.preemptions += 1
        insort(self._waiting, sequence, key=_rank)
        return sequence

    def _release(self, sequence: Sequence) -> None:
        self._running.remove(sequence)
        self._pool.release(sequence.block_ids)
        # A new array: the step that has just run may still refer to the old one.
        sequence.block_ids = array("i")


def _holds(sequence: Sequence, chunk: Chunk) -> bool:
    """Whether a sequence still holds the blocks of its chunk: it has not ended since that was scheduled."""
    return chunk.block_ids is sequence.block_ids
