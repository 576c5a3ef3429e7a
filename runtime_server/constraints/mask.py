"""Which tokens may come next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


def _ceilings() -> NDArray[np.float32]:
    bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
    return np.where(bits == 0, np.float32(-np.inf), np.float32(np.inf))


_CEILINGS = _ceilings()
"""``[256, 8]``: for each byte, the ceilings of the tokens that its bits stand for."""


class Mask:
    """The tokens that may come next, as what their logits must not exceed.

    Its memory is used for one step after the other: a new array each time would cost as much as filling it.

    Args:
        vocab_size: of the logits.
    """

    def __init__(self, vocab_size: int) -> None:
        self._ceilings = np.full((-(-vocab_size // 8), 8), -np.inf, np.float32)
        self.ceiling = self._ceilings.reshape(-1)[:vocab_size]
        """``[vocab_size]``: infinity where a token may come, minus infinity where it must not. The lesser of this and
        the logits is one pass over both, and takes as long whatever is allowed."""

    def fill(self, allowed: NDArray[np.uint8]) -> None:
        """Takes what is allowed from one bit per token, the lowest first."""
        # "clip" spares numpy a copy; no byte is out of range.
        np.take(_CEILINGS, allowed[: len(self._ceilings)], axis=0, out=self._ceilings, mode="clip")

    def allows(self, token_id: int) -> bool:
        """Whether a token may come."""
        return bool(self.ceiling[token_id] > 0)

    def leaves_none(self, banned: frozenset[int]) -> bool:
        """Whether nothing is left where ``banned`` must not be drawn either."""
        return int(np.count_nonzero(self.ceiling > 0)) == sum(map(self.allows, banned))
