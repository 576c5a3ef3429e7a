"""Angles of rotary position embeddings (arXiv 2104.09864), with the scalings that llama-family models use.

Every function works on inverse frequencies: ``head_dim / 2`` angles per position, in radians, fastest first.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

Frequencies = NDArray[np.float64]


def inverse_frequencies(head_dim: int, base: float) -> Frequencies:
    """The unscaled angles: ``base ** (-2i / head_dim)``."""
    exponents = np.arange(0, head_dim, 2, dtype=np.float64) / head_dim
    angles: Frequencies = np.power(base, -exponents)
    return angles


def linear(freqs: Frequencies, factor: float) -> Frequencies:
    """Position interpolation (arXiv 2306.15595): every position counts ``1 / factor``."""
    return freqs / factor


def llama3(freqs: Frequencies, *, factor: float, low: float, high: float, original_context: int) -> Frequencies:
    """Llama 3.1: slow angles are interpolated, fast ones kept, those between blended.

    Args:
        factor: how far the context is stretched.
        low: rotations within the original context below which an angle counts as slow.
        high: rotations above which it counts as fast.
        original_context: tokens that the model was first trained with.
    """
    rotations = original_context * freqs / (2 * math.pi)
    keep = np.clip((rotations - low) / (high - low), 0.0, 1.0)
    return freqs / factor * (1 - keep) + freqs * keep


def yarn(
    freqs: Frequencies,
    *,
    base: float,
    factor: float,
    original_context: int,
    beta_fast: float = 32.0,
    beta_slow: float = 1.0,
    truncate: bool = True,
) -> Frequencies:
    """YaRN (arXiv 2309.00071): like Llama 3.1's, but the blend is linear in the index of the angle.

    Args:
        base: the base of ``freqs``.
        beta_fast: rotations within the original context from which an angle is kept.
        beta_slow: rotations up to which it is interpolated.
        truncate: whether the blend's ends are whole indices.
    """
    dim = 2 * len(freqs)

    def index_of(rotations: float) -> float:
        return dim * math.log(original_context / (rotations * 2 * math.pi)) / (2 * math.log(base))

    first, last = index_of(beta_fast), index_of(beta_slow)
    if truncate:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, dim - 1)
    width = (last - first) or 0.001
    interpolate = np.clip((np.arange(len(freqs)) - first) / width, 0.0, 1.0)
    scaled: Frequencies = freqs / factor * interpolate + freqs * (1 - interpolate)
    return scaled


def yarn_attention_scale(factor: float, multiplier: float = 1.0) -> float:
    """YaRN's factor on cos and sin for a context stretched ``factor`` times."""
    return 1.0 if factor <= 1 else 0.1 * multiplier * math.log(factor) + 1.0
