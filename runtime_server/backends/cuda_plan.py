"""What a step hands to a card: its whole numbers, laid into one buffer, and the captured graph that takes it. Pure.

A step in which everybody decodes runs in a graph that was captured for some rows and some length of context. Rows that
nobody needs decode into a block that nobody reads. What a capture froze must hold for every step that it serves, and
nothing would tell if it did not: so each plan is checked against it.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate

import numpy as np
from numpy.typing import NDArray

from runtime_server.backends.base import Chunk

ALIGNMENT = 64
"""Whole numbers between the beginnings of two inputs in the buffer, at least: 256 bytes, as CUDA aligns memory."""
FIRST_LONGEST = 512
"""Tokens of the shortest class of contexts. Longer ones are twice as long each."""
ROW_STEPS = (1, 2, 4, 8, 12, 16, 24, 32, 48, 64, 96, 128)
"""Rows that graphs are captured for. Larger steps run without one."""

Integers = NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Bounds:
    """What the kernels are told of a step before it runs, ``attention_bounds`` of the graph."""

    chunk: int
    """Tokens that a sequence adds, at most."""
    longest: int
    """Tokens of a sequence after the step, at most."""
    least: int
    """Some sequence has as many."""

    def admits(self, other: Bounds) -> bool:
        """Whether these hold where ``other`` is exact."""
        return other.chunk <= self.chunk and self.least <= other.longest <= self.longest

    def array(self) -> Integers:
        """As the graph takes them."""
        return np.array([self.chunk, self.longest, self.least], np.int32)


@dataclass(frozen=True)
class Shape:
    """The sizes of a step's inputs and outputs."""

    tokens: int
    sequences: int
    width: int
    """Blocks in a row of the block table."""
    rows: int
    """Of the outputs."""

    def sizes(self) -> dict[str, tuple[int, ...]]:
        """The shape of each input that comes from the processor, by name."""
        return {
            "tokens": (self.tokens,),
            "token_places": (self.tokens,),
            "row_starts": (self.sequences + 1,),
            "past_tokens": (self.sequences,),
            "block_table": (self.sequences, self.width),
            "logit_rows": (self.rows,),
        }

    @cached_property
    def offsets(self) -> Mapping[str, int]:
        """Where each begins in the buffer."""
        sizes = self.sizes()
        ends = accumulate(-(-int(np.prod(size)) // ALIGNMENT) * ALIGNMENT for size in sizes.values())
        return dict(zip(sizes, [0, *ends][:-1], strict=True))

    @property
    def length(self) -> int:
        """Whole numbers in the buffer."""
        return self.offsets["logit_rows"] + self.rows


@dataclass(frozen=True, slots=True)
class Capture:
    """A graph that is captured once and replayed."""

    number: int
    """Different for each; from 1."""
    shape: Shape
    bounds: Bounds


@dataclass(frozen=True, slots=True)
class StepPlan:
    """One step, ready to be uploaded."""

    shape: Shape
    integers: Integers
    bounds: Bounds
    """Exact, or those of the capture."""
    rows: int
    """Of the outputs, that somebody wants."""
    capture: Capture | None
    """``None`` means that its operators are launched one by one."""

    def input(self, name: str) -> Integers:
        """The part of :attr:`integers` that is the input ``name``."""
        size = self.shape.sizes()[name]
        start = self.shape.offsets[name]
        return self.integers[start : start + int(np.prod(size))].reshape(size)


class Planner:
    """Makes the plans of one backend.

    Args:
        blocks: of the KV cache. The one after them is for rows that nobody needs.
        block_tokens: tokens that one holds.
        longest: tokens of one sequence, at most.
        places: for the tokens that the step before drew, at the beginning of what ``token_places`` counts; as many as
            a step has sequences, at most.
        captures: whether there are captured graphs.
    """

    def __init__(self, *, blocks: int, block_tokens: int, longest: int, places: int, captures: bool = True) -> None:
        self._spare_block = blocks
        self._block_tokens = block_tokens
        self._places = places
        self._longest = longest
        self._row_steps = [step for step in ROW_STEPS if step < places] + [places] if captures else []
        self._row_steps = [step for step in self._row_steps if step <= ROW_STEPS[-1]]

    def plan(self, chunks: Sequence[Chunk]) -> StepPlan:
        """The plan of one step. Raises ``ValueError`` for one without chunks."""
        if not chunks:
            raise ValueError("a step has at least one chunk")
        longest = max(chunk.start + chunk.count for chunk in chunks)
        exact = Bounds(max(chunk.count for chunk in chunks), longest, longest)
        capture = self._capture(chunks, exact)
        if capture is None:
            width = max(len(chunk.block_ids) for chunk in chunks)
            rows = sum(chunk.wants_logits for chunk in chunks)
            # Prompts alone want nothing, but no output may be empty.
            shape = Shape(sum(chunk.count for chunk in chunks), len(chunks), width, max(rows, 1))
            return self._filled(chunks, shape, exact, rows, None)
        plan = self._filled(chunks, capture.shape, capture.bounds, len(chunks), capture)
        check(plan)
        return plan

    def captures(self) -> int:
        """How many graphs there can be."""
        lengths = len(self._length_steps())
        return len(self._row_steps) * lengths

    def longest_buffer(self, step_tokens: int) -> int:
        """Whole numbers of the largest plan of ``step_tokens`` tokens in ``places`` sequences."""
        width = -(-self._longest // self._block_tokens)
        return Shape(step_tokens, self._places, width, self._places).length

    def _capture(self, chunks: Sequence[Chunk], exact: Bounds) -> Capture | None:
        everybody_decodes = exact.chunk == 1 and all(chunk.wants_logits for chunk in chunks)
        if not everybody_decodes or not self._row_steps or len(chunks) > self._row_steps[-1]:
            return None
        row_place = bisect_left(self._row_steps, len(chunks))
        lengths = self._length_steps()
        length_place = bisect_left(lengths, exact.longest)
        rows, longest = self._row_steps[row_place], lengths[length_place]
        least = lengths[length_place - 1] + 1 if length_place else 0
        shape = Shape(rows, rows, -(-longest // self._block_tokens), rows)
        return Capture(1 + row_place * len(lengths) + length_place, shape, Bounds(1, longest, least))

    def _length_steps(self) -> list[int]:
        steps = [FIRST_LONGEST]
        while steps[-1] < self._longest:
            steps.append(2 * steps[-1])
        return [*steps[:-1], self._longest]

    def _filled(
        self, chunks: Sequence[Chunk], shape: Shape, bounds: Bounds, rows: int, capture: Capture | None
    ) -> StepPlan:
        """The chunks, and after them rows of one token that decode into the spare block."""
        plan = StepPlan(shape, np.zeros(shape.length, np.int32), bounds, rows, capture)
        tokens, places = plan.input("tokens"), plan.input("token_places")
        starts, past = plan.input("row_starts"), plan.input("past_tokens")
        table, wanted = plan.input("block_table"), plan.input("logit_rows")
        places[:] = np.arange(self._places, self._places + shape.tokens)
        table[:] = self._spare_block
        place = row = 0
        for number, chunk in enumerate(chunks):
            if chunk.follows is None:
                tokens[place : place + chunk.count] = chunk.token_ids
            else:
                places[place] = chunk.follows
            past[number] = chunk.start
            table[number, : len(chunk.block_ids)] = chunk.block_ids[: shape.width]
            place += chunk.count
            starts[number + 1] = place
            if chunk.wants_logits:
                wanted[row] = place - 1
                row += 1
        spare = shape.sequences - len(chunks)
        if spare:
            starts[len(chunks) + 1 :] = wanted[row:] = place + np.arange(spare)
            starts[len(chunks) + 1 :] += 1
        return plan


def check(plan: StepPlan) -> None:
    """Raises ``RuntimeError`` where a captured plan is not what its graph was captured for."""
    if plan.capture is None:
        return
    lengths = np.diff(plan.input("row_starts"))
    after = plan.input("past_tokens") + lengths
    exact = Bounds(int(lengths.max()), int(after.max()), int(after.max()))
    if plan.shape != plan.capture.shape or int(lengths.min()) != 1 or not plan.capture.bounds.admits(exact):
        raise RuntimeError(f"a step of {plan.shape}, {exact} in a graph that was captured for {plan.capture}")
