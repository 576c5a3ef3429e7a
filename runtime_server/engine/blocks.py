"""The blocks of the KV cache: who holds which, and what those hold that nobody holds. Pure.

A full block is known by a digest of its tokens, of all tokens before it and of the salt (a hash chain). A sequence
that begins with the same tokens under the same salt takes the block as it is instead of computing it again.
"""

from __future__ import annotations

from array import array
from collections import OrderedDict
from collections.abc import Iterable
from hashlib import blake2b

DIGEST_BYTES = 32
"""Two contents with one digest would answer one client with another's prompt: as strong as SHA-256."""


def root_digest(salt: str | None) -> bytes:
    """Where the chain of a sequence begins. Only sequences with the same salt, or none, can share a block."""
    if salt is None:
        return blake2b(digest_size=DIGEST_BYTES, person=b"no salt").digest()
    return blake2b(salt.encode("utf-8", "surrogatepass"), digest_size=DIGEST_BYTES, person=b"salt").digest()


def block_digest(parent: bytes, token_ids: array[int]) -> bytes:
    """The digest of a full block after the one with the digest ``parent``."""
    return blake2b(parent + token_ids.tobytes(), digest_size=DIGEST_BYTES, person=b"block").digest()


class BlockPool:
    """Counts who holds each block and finds blocks by their digests.

    A block that nobody holds keeps its content until it is needed for something else; the one that was released
    longest ago goes first.

    Args:
        blocks: their number. The ids are 0 to ``blocks - 1``.
        block_tokens: tokens that one holds.
    """

    def __init__(self, blocks: int, block_tokens: int) -> None:
        self.blocks = blocks
        self.block_tokens = block_tokens
        self._holders = [0] * blocks
        self._digests: list[bytes | None] = [None] * blocks
        self._by_digest: dict[bytes, int] = {}
        # The lowest id first, so that memory is touched only as far as it is needed.
        self._empty = list(range(blocks - 1, -1, -1))
        self._idle: OrderedDict[int, None] = OrderedDict()

    @property
    def available(self) -> int:
        """Blocks that nobody holds, whether their content could still be found or not."""
        return len(self._empty) + len(self._idle)

    @property
    def cached(self) -> int:
        """Blocks that nobody holds and whose content can be found."""
        return len(self._idle)

    def needed(self, tokens: int) -> int:
        """Blocks that hold ``tokens``."""
        return -(-tokens // self.block_tokens)

    def holders(self, block_id: int) -> int:
        """How many sequences hold a block."""
        return self._holders[block_id]

    def allocate(self) -> int:
        """A block of one's own; what it held is forgotten. Raises ``RuntimeError`` where none is available."""
        if self._empty:
            block_id = self._empty.pop()
        elif self._idle:
            block_id, _ = self._idle.popitem(last=False)
            self._forget(block_id)
        else:
            raise RuntimeError("no block is available")
        self._holders[block_id] = 1
        return block_id

    def find(self, digest: bytes) -> int | None:
        """The block with this content, if there is one. It is not held by asking."""
        return self._by_digest.get(digest)

    def hold(self, block_id: int) -> None:
        """Adds a holder to a block that :meth:`find` gave."""
        if self._holders[block_id] == 0:
            del self._idle[block_id]
        self._holders[block_id] += 1

    def share(self, block_id: int, digest: bytes) -> int:
        """Lets others find a full block that has been computed and is not written to any more.

        Returns the block to hold from now on: another one with the same content if there is one, and then
        ``block_id`` is released.
        """
        twin = self._by_digest.setdefault(digest, block_id)
        if twin != block_id:
            self.hold(twin)
            self.release((block_id,))
        else:
            self._digests[block_id] = digest
        return twin

    def release(self, block_ids: Iterable[int]) -> None:
        """Takes one holder from each of a sequence's blocks, given in the order of their tokens.

        The last block counts as released first: without the blocks before it, it is of no use.
        """
        for block_id in reversed(tuple(block_ids)):
            self._holders[block_id] -= 1
            if self._holders[block_id]:
                continue
            if self._digests[block_id] is None:
                self._empty.append(block_id)
            else:
                self._idle[block_id] = None

    def _forget(self, block_id: int) -> None:
        digest = self._digests[block_id]
        if digest is None:
            raise RuntimeError("an idle block has a digest")
        del self._by_digest[digest]
        self._digests[block_id] = None
