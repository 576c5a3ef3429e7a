"""What the engine needs of a device: run some tokens of some sequences, hand back logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray


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

    def run(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        """Runs one step; at most one chunk per sequence.

        Returns the logits ``[rows, vocab_size]`` of the chunks that want them, in their order. The array is valid
        until the next call. A row depends on the tokens before it only, bit for bit: not on its neighbours, nor on
        how the tokens before it were cut into chunks.
        """
        ...

    def close(self) -> None:
        """Frees the device's memory."""
        ...
