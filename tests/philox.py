"""Philox4x32-10 in numpy, an independent second opinion on the native sampler's numbers.

The algorithm is that of Salmon, Moraes, Dror, Shaw: "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_ROUNDS = 10
_MULTIPLIERS = (np.uint64(0xD2511F53), np.uint64(0xCD9E8D57))
_WEYL = (0x9E3779B9, 0xBB67AE85)
_LOW = np.uint64(0xFFFFFFFF)
_SHIFT = np.uint64(32)


def philox4x32(counter: NDArray[np.uint64], key: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Random words for each row.

    Args:
        counter: ``[4, rows]``, each value below 2**32.
        key: ``[2, rows]``, each value below 2**32.

    Returns: ``[4, rows]``, each value below 2**32.
    """
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for round_ in range(_ROUNDS):
        if round_:
            k0 = (k0 + np.uint64(_WEYL[0])) & _LOW
            k1 = (k1 + np.uint64(_WEYL[1])) & _LOW
        product0 = _MULTIPLIERS[0] * c0
        product1 = _MULTIPLIERS[1] * c2
        c0, c1, c2, c3 = (
            (product1 >> _SHIFT) ^ c1 ^ k0,
            product1 & _LOW,
            (product0 >> _SHIFT) ^ c3 ^ k1,
            product0 & _LOW,
        )
    return np.stack([c0, c1, c2, c3])


def uniform(
    seeds: NDArray[np.uint64], choices: NDArray[np.uint64], positions: NDArray[np.uint64]
) -> NDArray[np.float64]:
    """One number in [0, 1) per row, with 53 random bits.

    Args:
        seeds: 64 bits each.
        choices: index of the choice, below 2**32.
        positions: position of the token in the output, below 2**32.
    """
    zero = np.zeros_like(positions)
    words = philox4x32(np.stack([positions, choices, zero, zero]), np.stack([seeds & _LOW, seeds >> _SHIFT]))
    bits = (words[0] << np.uint64(21)) | (words[1] >> np.uint64(11))
    numbers: NDArray[np.float64] = bits.astype(np.float64) * 2.0**-53
    return numbers
