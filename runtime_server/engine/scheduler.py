"""Decides what runs in each step. Pure: no thread, no clock, no device.

Every sequence that has its prompt behind it decodes in every step; the oldest sequence that has not gets one chunk
of its prompt beside them. How a prompt is cut depends on its length only, not on the load, and so do its bits. A slot
belongs to a sequence from its first step until the schedule after its last one; a freed slot is only reused by
:meth:`Scheduler.schedule`, never while a step runs.
"""

from __future__ import annotations

import heapq
from collections import OrderedDict
from collections.abc import Sequence as Items
from dataclasses import dataclass

from mantler.errors import ErrorCode, MantlerError
from mantler.messages import FinishReason
from runtime_server.engine.sequence import Sequence


@dataclass(frozen=True, slots=True)
class Work:
    """A sequence's share of one step: the tokens from ``start`` to ``stop`` of its prompt and output."""

    sequence: Sequence
    slot: int
    start: int
    stop: int
    samples: bool
    """Whether a token is drawn after it."""

    def token_ids(self) -> Items[int]:
        """The tokens to run."""
        prompt = self.sequence.prompt_ids
        if self.start < len(prompt):
            return prompt[self.start : self.stop]
        return self.sequence.output_ids[self.start - len(prompt) : self.stop - len(prompt)]


@dataclass(frozen=True, slots=True)
class Step:
    """What to run next."""

    admitted: tuple[Sequence, ...]
    """Sequences that got their slot in this step."""
    work: tuple[Work, ...]


@dataclass(frozen=True, slots=True)
class Sampled:
    """A token that a sequence got. Not for the client where ``finish`` is STOP."""

    sequence: Sequence
    token_id: int
    finish: FinishReason | None


def longest_chunk(chunk_tokens: int) -> int:
    """A prompt's last chunk may be this long: a short rest costs a call of its own nearly as much as a whole chunk."""
    return chunk_tokens * 3 // 2


class Scheduler:
    """Queue, slots and running sequences of one model.

    Args:
        slots: sequences that run at the same time.
        max_queue: sequences that may wait beyond the free slots.
        chunk_tokens: prompt tokens per step; the last chunk of a prompt may be half as long again.
    """

    def __init__(self, *, slots: int, max_queue: int, chunk_tokens: int) -> None:
        self._max_queue = max_queue
        self._chunk_tokens = chunk_tokens
        self._free_slots = list(range(slots))
        self._waiting: OrderedDict[int, Sequence] = OrderedDict()
        self._running: OrderedDict[int, Sequence] = OrderedDict()

    @property
    def idle(self) -> bool:
        """Whether nothing waits and nothing runs."""
        return not self._waiting and not self._running

    @property
    def waiting(self) -> int:
        """Sequences without a slot."""
        return len(self._waiting)

    @property
    def running(self) -> int:
        """Sequences with a slot."""
        return len(self._running)

    def add(self, sequence: Sequence) -> None:
        """Queues a sequence. Raises ``MantlerError`` QUEUE_FULL where there is no room, and changes nothing then."""
        if len(self._waiting) >= self._max_queue + len(self._free_slots):
            raise MantlerError(
                ErrorCode.QUEUE_FULL,
                f"{self.running} requests are running and {self.waiting} waiting; the queue is full.",
                retry_after_s=1.0,
            )
        self._waiting[id(sequence)] = sequence

    def cancel(self, sequence: Sequence) -> None:
        """Forgets a sequence: at once where it waits, before the next step where it runs. Twice is harmless."""
        if self._waiting.pop(id(sequence), None) is None:
            sequence.cancelled = True

    def schedule(self) -> Step:
        """The next step. Its work is empty where there is nothing to do."""
        for sequence in [s for s in self._running.values() if s.cancelled]:
            self._release(sequence)
        admitted = []
        while self._free_slots and self._waiting:
            _, sequence = self._waiting.popitem(last=False)
            # The lowest slot: a decode call spans all slots up to the highest one in use.
            sequence.slot = heapq.heappop(self._free_slots)
            self._running[id(sequence)] = sequence
            admitted.append(sequence)
        work = [self._decode(sequence) for sequence in self._running.values() if not sequence.prefilling]
        prompt = next((sequence for sequence in self._running.values() if sequence.prefilling), None)
        if prompt is not None:
            work.append(self._chunk(prompt))
        return Step(tuple(admitted), tuple(work))

    def commit(self, step: Step, token_ids: Items[int]) -> list[Sampled]:
        """Takes the outcome of ``step``: one token for each work that samples, in their order.

        Returns the tokens of the sequences that nobody has cancelled meanwhile.
        """
        tokens = iter(token_ids)
        sampled = []
        for work in step.work:
            sequence = work.sequence
            sequence.computed = work.stop
            if not work.samples:
                continue
            token_id = next(tokens)
            if sequence.cancelled:
                continue
            finish = sequence.append(token_id)
            if finish is not None:
                self._release(sequence)
            sampled.append(Sampled(sequence, token_id, finish))
        return sampled

    def drop_all(self) -> list[Sequence]:
        """Forgets every sequence and returns them. For an engine that stops."""
        dropped = [*self._running.values(), *self._waiting.values()]
        for sequence in list(self._running.values()):
            self._release(sequence)
        self._waiting.clear()
        return dropped

    def _release(self, sequence: Sequence) -> None:
        slot = sequence.slot
        if slot is None:
            raise RuntimeError("a sequence without a slot cannot release one")
        del self._running[id(sequence)]
        sequence.slot = None
        heapq.heappush(self._free_slots, slot)

    def _decode(self, sequence: Sequence) -> Work:
        return self._work(sequence, sequence.computed + 1, samples=True)

    def _chunk(self, sequence: Sequence) -> Work:
        stop = len(sequence.prompt_ids)
        if stop - sequence.computed > longest_chunk(self._chunk_tokens):
            stop = sequence.computed + self._chunk_tokens
        return self._work(sequence, stop, samples=stop == len(sequence.prompt_ids))

    @staticmethod
    def _work(sequence: Sequence, stop: int, *, samples: bool) -> Work:
        if sequence.slot is None:
            raise RuntimeError("a sequence without a slot cannot run")
        return Work(sequence, sequence.slot, sequence.computed, stop, samples)
