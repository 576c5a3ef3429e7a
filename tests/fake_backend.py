"""A backend without a model: its next token is a function of every token in the slot.

So a token that lands in the wrong slot or at the wrong place changes the output, and a test sees it.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from runtime_server.backends.base import Chunk

VOCAB_SIZE = 300


def next_token(tokens: Sequence[int], vocab_size: int = VOCAB_SIZE) -> int:
    """The token that follows ``tokens``."""
    digest = blake2b(np.array(tokens, np.int64).tobytes(), digest_size=8).digest()
    return int.from_bytes(digest, "little") % vocab_size


def continuation(prompt: Sequence[int], length: int) -> list[int]:
    """The greedy answer to ``prompt``."""
    tokens = list(prompt)
    for _ in range(length):
        tokens.append(next_token(tokens))
    return tokens[len(prompt) :]


class FakeBackend:
    """Keeps the tokens of each slot and checks how it is called.

    Args:
        before_step: called with the chunks at the beginning of each step, on the engine's thread; may block or raise.
    """

    device = "fake"
    kv_cache_bytes = 0

    def __init__(
        self, *, slots: int, max_tokens: int, before_step: Callable[[Sequence[Chunk]], None] = lambda chunks: None
    ) -> None:
        self.slots = slots
        self.max_tokens = max_tokens
        self.closed = threading.Event()
        self.steps: list[list[Chunk]] = []
        self._before_step = before_step
        self._held: list[list[int]] = [[] for _ in range(slots)]

    def run(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        self._before_step(chunks)
        self.steps.append(list(chunks))
        assert len({chunk.slot for chunk in chunks}) == len(chunks), "two chunks for one slot"
        rows = []
        for chunk in chunks:
            held = self._held[chunk.slot]
            assert chunk.start <= len(held), "a gap in the slot"
            held[chunk.start :] = chunk.token_ids
            assert len(held) <= self.max_tokens, "more tokens than the slot holds"
            if chunk.wants_logits:
                row = np.zeros(VOCAB_SIZE, np.float32)
                row[next_token(held)] = 10.0
                rows.append(row)
        return np.stack(rows) if rows else np.empty((0, VOCAB_SIZE), np.float32)

    def close(self) -> None:
        self.closed.set()
