"""Where the tokens of a step stand: in which sequence, at which position, and in which slots of the caches."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Integers = NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Layout:
    """The sequences of a step, whose new tokens are packed one sequence after the other."""

    starts: Integers
    """``[batch + 1]``, first packed row of each sequence, and how many there are."""
    past: Integers
    """``[batch]``, tokens before this step."""
    table: Integers
    """``[batch, width]``, blocks of each sequence."""
    blocks: int
    """Of the caches."""
    block_size: int
    """Tokens of one."""
    positions: Integers
    """``[tokens]``, of each packed row in its sequence."""

    @classmethod
    def of(cls, tokens: int, starts: Integers, past: Integers, table: Integers, blocks: int, block_size: int) -> Layout:
        """Raises ``TypeError`` for another type than int32, ``ValueError`` for a shape or number that is wrong."""
        for name, array in (("cumulative_sequence_length", starts), ("past_seqlens", past), ("block_table", table)):
            _int32(name, array)
        batch = len(past)
        if past.ndim != 1 or starts.shape != (batch + 1,) or not batch:
            raise ValueError(f"cumulative_sequence_length {starts.shape} for past_seqlens {past.shape}")
        if table.ndim != 2 or len(table) != batch:
            raise ValueError(f"block_table of the shape {table.shape} for {batch} sequences")
        counts = np.diff(starts)
        if starts[0] != 0 or starts[-1] != tokens or counts.min() < 0:
            raise ValueError(f"cumulative_sequence_length {starts.tolist()} does not rise from 0 to {tokens}")
        room = table.shape[1] * block_size
        if past.min() < 0 or (past + counts).max() > room:
            raise ValueError(f"past_seqlens {past.tolist()} and {counts.tolist()} new tokens in rows for {room}")
        positions = np.arange(tokens) + np.repeat(past - starts[:-1], counts)
        return cls(starts, past, table, blocks, block_size, positions)

    @property
    def batch(self) -> int:
        """Sequences."""
        return len(self.past)

    def rows(self, sequence: int) -> slice:
        """Packed rows of a sequence."""
        return slice(int(self.starts[sequence]), int(self.starts[sequence + 1]))

    def places(self, sequence: int, positions: Integers) -> tuple[Integers, Integers]:
        """Blocks, and places in them, of positions in a sequence. Raises ``ValueError`` for a block that is none."""
        blocks = self.table[sequence, positions // self.block_size]
        wrong = np.flatnonzero((blocks < 0) | (blocks >= self.blocks))
        if wrong.size:
            where = f"position {positions[wrong[0]]} of sequence {sequence}"
            raise ValueError(f"{where} is in block {blocks[wrong[0]]} of {self.blocks}")
        return blocks, positions % self.block_size

    def slots(self) -> Integers:
        """``[tokens]``, where the table has the new tokens, counted over all blocks. Raises ``ValueError``."""
        found = np.empty(len(self.positions), np.int64)
        for sequence in range(self.batch):
            rows = self.rows(sequence)
            blocks, places = self.places(sequence, self.positions[rows])
            found[rows] = blocks.astype(np.int64) * self.block_size + places
        return found

    def checked_slots(self, slots: Integers) -> Integers:
        """``slots`` as they are, -1 among them. Raises ``ValueError`` for one that no cache has, and for a shape."""
        _int32("slot_mapping", slots)
        if slots.shape != self.positions.shape:
            raise ValueError(f"slot_mapping of the shape {slots.shape} for {len(self.positions)} tokens")
        wrong = slots[(slots < -1) | (slots >= self.blocks * self.block_size)]
        if wrong.size:
            raise ValueError(f"slot {wrong[0]} of {self.blocks * self.block_size}")
        return slots

    def check_bounds(self, metadata: Integers) -> None:
        """Raises ``ValueError`` where a bound does not hold: the kernel trusts them and would leave tokens out."""
        _int32("attention_metadata", metadata)
        if metadata.shape not in ((2,), (3,)) or metadata.min() < 0:
            raise ValueError(f"attention_metadata {metadata.tolist()}, which should be 2 or 3 numbers, 0 or above")
        counts = np.diff(self.starts)
        longest = int((self.past + counts).max())
        new, most, least = (*metadata.tolist(), 0)[:3]
        if (new and counts.max() > new) or (most and longest > most) or longest < least:
            bounds = f"{counts.max()} new tokens and {longest} in all"
            raise ValueError(f"a sequence has {bounds}, which attention_metadata {metadata.tolist()} excludes")


def _int32(name: str, array: Integers) -> None:
    if array.dtype != np.int32:
        raise TypeError(f"{name} of the type {array.dtype}, which should be int32")
