"""What the engine needs of a device: run some tokens of some sequences, say what may come next."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Chunk:
    """The next tokens of one sequence: part of its prompt, or the one token that was sampled last."""

    block_ids: Sequence[int]
    """The sequence's blocks of the KV cache in the order of their tokens; enough for ``start`` and the new tokens."""
    start: int
    """How many tokens the blocks hold before this chunk."""
    token_ids: Sequence[int]
    wants_logits: bool
    """Whether the logits after the chunk's last token are needed."""
    follows: int | None = None
    """Where nobody knows the chunk's one token yet: the row of the step before whose likeliest token it is.
    ``token_ids`` is empty then."""

    @property
    def count(self) -> int:
        """How many tokens the chunk has."""
        return len(self.token_ids) if self.follows is None else 1


@dataclass(frozen=True, slots=True)
class Candidates:
    """The likeliest tokens of each row, best first."""

    ids: NDArray[np.int64]
    """``[rows, count]``"""
    values: Floats
    """Their logits ``[rows, count]``."""
    logsumexp: Floats
    """``[rows]``, over all logits."""

    @property
    def count(self) -> int:
        """How many there are of each row."""
        return int(self.ids.shape[1])


class Output(Protocol):
    """What a step computed: one row for each chunk that wants logits, in their order."""

    @property
    def candidates(self) -> Candidates | None:
        """``None`` where the logits are at hand anyway. Valid for good."""
        ...

    def logits(self, rows: Sequence[int]) -> Floats:
        """The logits ``[len(rows), vocab_size]`` of some rows, in rising order, to be written to as well.

        They are there until the next launch.
        """
        ...


class Flight(Protocol):
    """A step that was launched."""

    def output(self) -> Output:
        """Waits for the step and returns what came of it. Raises what went wrong."""
        ...


class Backend(Protocol):
    """Weights and KV cache on one device. Used by one thread."""

    @property
    def device(self) -> str:
        """For example ``cpu``."""
        ...

    @property
    def blocks(self) -> int:
        """Blocks of the KV cache. Sequences may share a block that none of them writes to."""
        ...

    @property
    def block_tokens(self) -> int:
        """Tokens that one block holds."""
        ...

    @property
    def kv_cache_bytes(self) -> int:
        """Bytes reserved for keys and values."""
        ...

    @property
    def ahead(self) -> bool:
        """Whether a step may be launched while the one before it runs. Steps run in the order of their launches."""
        ...

    def launch(self, chunks: Sequence[Chunk]) -> Flight:
        """Begins one step; at most one chunk per sequence. What it takes of ``chunks`` it takes before it returns.

        Only one step may be unfinished when this is called, none where ``ahead`` is false. Chunks may follow its rows.
        """
        ...

    def close(self) -> None:
        """Frees the device's memory, after the steps that were launched."""
        ...


class BlockingBackend(ABC):
    """A backend whose steps are over when they have been launched, with all logits at hand."""

    ahead = False

    @abstractmethod
    def run(self, chunks: Sequence[Chunk]) -> Floats:
        """Runs one step and returns the logits ``[rows, vocab_size]``, valid until the next call.

        A row depends on the tokens before it only, bit for bit: not on its neighbours, nor on how the tokens before it
        were cut into chunks.
        """

    def launch(self, chunks: Sequence[Chunk]) -> Flight:
        """See :meth:`Backend.launch`."""
        return Computed(self.run(chunks))


class Computed:
    """All logits of a step, which is over."""

    candidates = None

    def __init__(self, logits: Floats) -> None:
        self._logits = logits

    def output(self) -> Computed:
        """See :meth:`Flight.output`."""
        return self

    def logits(self, rows: Sequence[int]) -> Floats:
        """See :meth:`Output.logits`."""
        return self._logits if len(rows) == len(self._logits) else self._logits[list(rows)]
