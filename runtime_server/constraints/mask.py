"""Which tokens may come next."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class Mask:
    """The tokens that may come next.

    Args:
        bits: one per token of the logits or more, the lowest first; kept, not copied. Those beyond are 0.
    """

    def __init__(self, bits: NDArray[np.uint8]) -> None:
        self._bits = bits
        self.address = bits.ctypes.data
        """Where the bits lie as long as the mask lives."""

    def allows(self, token_id: int) -> bool:
        """Whether a token may come."""
        return bool(self._bits[token_id // 8] >> token_id % 8 & 1)

    def leaves_none(self, banned: frozenset[int]) -> bool:
        """Whether nothing is left where ``banned`` must not be drawn either."""
        return int(np.bitwise_count(self._bits).sum()) == sum(map(self.allows, banned))
