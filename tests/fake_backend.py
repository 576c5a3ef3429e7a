"""A backend without a model: its next token is a function of every token before it.

Each token that a block holds is stored with a digest of itself and all tokens before it, as real keys and values depend
on them. So a wrong block table, a block written to while somebody else reads it, and one that was given away and
overwritten fail in the step that reads them, with words.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b

import numpy as np
from numpy.typing import NDArray

from runtime_server.backends.base import BlockingBackend, Candidates, Chunk, Flight

VOCAB_SIZE = 300
START = b""
"""The digest of no tokens."""


def extend(digest: bytes, token_id: int) -> bytes:
    """The digest of some tokens and one more."""
    return blake2b(digest + token_id.to_bytes(4, "little"), digest_size=8).digest()


def digest_of(tokens: Sequence[int]) -> bytes:
    """The digest of ``tokens``."""
    digest = START
    for token_id in tokens:
        digest = extend(digest, token_id)
    return digest


def token_after(digest: bytes) -> int:
    """The token that follows."""
    return int.from_bytes(digest, "little") % VOCAB_SIZE


def continuation(prompt: Sequence[int], length: int) -> list[int]:
    """The greedy answer to ``prompt``."""
    digest = digest_of(prompt)
    answer = []
    for _ in range(length):
        answer.append(token_after(digest))
        digest = extend(digest, answer[-1])
    return answer


@dataclass(slots=True)
class _Block:
    before: bytes = START
    """The digest of the tokens before the block."""
    digests: list[bytes] = field(default_factory=list)
    """One per token that the block holds, of the tokens up to it."""


class FakeBackend(BlockingBackend):
    """Keeps a digest per token and checks how it is called.

    Args:
        before_step: called with the chunks at the beginning of each step, on the engine's thread; may block or raise.
    """

    device = "fake"
    kv_cache_bytes = 0

    def __init__(
        self,
        *,
        blocks: int,
        block_tokens: int = 4,
        max_step_tokens: int = 10_000,
        before_step: Callable[[Sequence[Chunk]], None] = lambda chunks: None,
    ) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        self.closed = threading.Event()
        self.steps: list[list[Chunk]] = []
        self._max_step_tokens = max_step_tokens
        self._before_step = before_step
        self._held = [_Block() for _ in range(blocks)]

    def run(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        self._before_step(chunks)
        self.steps.append([Chunk(tuple(c.block_ids), c.start, tuple(c.token_ids), c.wants_logits) for c in chunks])
        assert chunks, "an empty step"
        assert sum(len(chunk.token_ids) for chunk in chunks) <= self._max_step_tokens, "over the budget"
        self._check_writes(chunks)
        # The blocks of all chunks are read as they were before the step: no chunk may need what another one computes.
        before = [self._digest_before(chunk) for chunk in chunks]
        after = [self._write(chunk, digest) for chunk, digest in zip(chunks, before, strict=True)]
        wanted = [digest for chunk, digest in zip(chunks, after, strict=True) if chunk.wants_logits]
        logits = np.zeros((len(wanted), VOCAB_SIZE), np.float32)
        for row, digest in enumerate(wanted):
            logits[row, token_after(digest)] = 10.0
        return logits

    def close(self) -> None:
        self.closed.set()

    def _check_writes(self, chunks: Sequence[Chunk]) -> None:
        readers: dict[int, int] = {}
        for chunk in chunks:
            assert len(chunk.token_ids) > 0, "an empty chunk"
            assert len(set(chunk.block_ids)) == len(chunk.block_ids), "a block twice in one table"
            assert all(0 <= block < self.blocks for block in chunk.block_ids), "no such block"
            held = len(chunk.block_ids) * self.block_tokens
            assert chunk.start + len(chunk.token_ids) <= held, "too few blocks"
            for block in chunk.block_ids:
                readers[block] = readers.get(block, 0) + 1
        for chunk in chunks:
            stop = chunk.start + len(chunk.token_ids)
            for number in range(chunk.start // self.block_tokens, -(-stop // self.block_tokens)):
                assert readers[chunk.block_ids[number]] == 1, "a chunk writes to a block that another one uses"

    def _digest_before(self, chunk: Chunk) -> bytes:
        """The digest of the tokens that the chunk's blocks hold; checks that it is one sequence without a gap."""
        digest = START
        for number in range(-(-chunk.start // self.block_tokens)):
            block = self._held[chunk.block_ids[number]]
            assert block.before == digest, "a block holds what follows on other tokens"
            filled = min(self.block_tokens, chunk.start - number * self.block_tokens)
            assert len(block.digests) >= filled, "a gap before the chunk"
            digest = block.digests[filled - 1]
        return digest

    def _write(self, chunk: Chunk, digest: bytes) -> bytes:
        for position, token_id in enumerate(chunk.token_ids, start=chunk.start):
            number, offset = divmod(position, self.block_tokens)
            block = self._held[chunk.block_ids[number]]
            if offset == 0:
                block.before = digest
            digest = extend(digest, token_id)
            block.digests[offset:] = [digest]
        return digest


class AheadBackend(FakeBackend):
    """Takes steps before the one before them was looked at, and hands out the likeliest tokens, as a card does."""

    ahead = True
    CANDIDATES = 4

    def __init__(self, *, blocks: int, block_tokens: int = 4, max_step_tokens: int = 10_000) -> None:
        super().__init__(blocks=blocks, block_tokens=block_tokens, max_step_tokens=max_step_tokens)
        self.unseen = 0
        """Steps that were launched and not looked at."""
        self.ahead_steps = 0
        self._sampled: list[int] = []

    def launch(self, chunks: Sequence[Chunk]) -> Flight:
        assert self.unseen < 2, "more than one step ahead"
        self.ahead_steps += any(chunk.follows is not None for chunk in chunks)
        known = [
            chunk
            if chunk.follows is None
            else Chunk(chunk.block_ids, chunk.start, [self._sampled[chunk.follows]], chunk.wants_logits)
            for chunk in chunks
        ]
        logits = self.run(known)
        self._sampled = [int(row.argmax()) for row in logits]
        self.unseen += 1
        return _Flying(self, logits)


class _Flying:
    def __init__(self, backend: AheadBackend, logits: NDArray[np.float32]) -> None:
        self._backend = backend
        self._logits = logits
        ids = np.argsort(-logits, axis=1, kind="stable")[:, : backend.CANDIDATES]
        mass = np.log(np.exp(logits).sum(axis=1))
        self.candidates = Candidates(ids, np.take_along_axis(logits, ids, axis=1), mass)

    def output(self) -> _Flying:
        self._backend.unseen -= 1
        return self

    def logits(self, rows: Sequence[int]) -> NDArray[np.float32]:
        return self._logits[list(rows)]
