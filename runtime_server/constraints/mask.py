"""Which tokens may come next."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray


def _ceilings() -> NDArray[np.float32]:
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.where(bits == 0, np.float32(-np.inf), np.float32(np.inf))


_CEILINGS = _ceilings()
"""``[256, 8]``: for each byte, the ceilings of the tokens that its bits stand for."""


@dataclass(frozen=True, slots=True)
class Mask:
    """The tokens that may come next, as what their logits must not exceed."""

    ceiling: NDArray[np.float32]
    """``[vocab_size]``: infinity where a token may come, minus infinity where it must not. The lesser of this and the
    logits is one pass over both, and takes as long whatever is allowed."""

    @classmethod
    def of(cls, allowed: NDArray[np.uint8], vocab_size: int) -> Mask:
        """From one bit per token, the lowest first."""
        # "clip" spares numpy a copy; no byte is out of range.
        return cls(np.take(_CEILINGS, allowed, axis=0, mode="clip").reshape(-1)[:vocab_size])

    def allows(self, token_id: int) -> bool:
        """Whether a token may come."""
        return bool(self.ceiling[token_id] > 0)

    def leaves_none(self, banned: frozenset[int]) -> bool:
        """Whether nothing is left where ``banned`` must not be drawn either."""
        return int(np.count_nonzero(self.ceiling > 0)) == sum(map(self.allows, banned))
