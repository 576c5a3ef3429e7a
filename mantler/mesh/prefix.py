"""The beginning of a request as a chain of hashes.

A facade has no token ids, but two requests whose bytes begin alike mostly have tokens that begin alike. The n-th hash
of a chain is that of everything up to the n-th boundary, so two chains share as many hashes as their texts share
chunks. Boundaries stand close together at first, where conversations part, and further apart later; beyond the last one
nothing is hashed, so that a request costs a bounded amount.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate

CHUNK_BYTES = (256,) * 8 + (1024,) * 14 + (4096,) * 32
"""Up to 144 KiB in 54 chunks."""
BOUNDARIES = tuple(accumulate(CHUNK_BYTES))
HASH_BYTES = 8


@dataclass(frozen=True, slots=True)
class Prefix:
    """What a request begins with."""

    hashes: tuple[bytes, ...] = ()
    """One for each boundary that the request reaches."""
    total_bytes: int = 0
    """Of the whole request."""


NO_PREFIX = Prefix()
"""Begins like nothing."""


def chain(parts: Iterable[bytes], salt: bytes) -> Prefix:
    """The prefix of the bytes that ``parts`` make together; how they are cut does not matter.

    Args:
        parts: the canonical form of whatever the runtime makes its prompt of, in its order.
        salt: separates tenants that must not find out from a fast answer what others have asked: an org's id, or the
            request's ``cache_salt``.
    """
    digest = hashlib.blake2b(digest_size=HASH_BYTES, key=hashlib.blake2b(salt, digest_size=32).digest())
    hashes: list[bytes] = []
    boundaries = iter(BOUNDARIES)
    boundary = next(boundaries, None)
    at = 0
    for part in parts:
        view = memoryview(part)
        while boundary is not None and at + len(view) >= boundary:
            digest.update(view[: boundary - at])
            hashes.append(digest.copy().digest())
            view = view[boundary - at :]
            at, boundary = boundary, next(boundaries, None)
        if boundary is not None:
            digest.update(view)
        at += len(view)
    return Prefix(tuple(hashes), at)


def covered_bytes(depth: int) -> int:
    """How many bytes the first ``depth`` hashes of a chain stand for."""
    return BOUNDARIES[depth - 1] if depth else 0
