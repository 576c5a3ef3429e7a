"""Whole-number weights: what was published with 4 bits stays as it is, all else is at most half a step off."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays
from numpy.typing import NDArray

from runtime_server.models.quantize import BLOCK, ZERO_POINT, Blocks, eight_bits, four_bits, quantize

Floats = NDArray[np.float32]

HALVES = st.floats(2.0**-10, 100, width=16)
LEVELS = arrays.arrays(np.uint8, (3, 2, BLOCK), elements=st.integers(0, 15))
ROUNDING = 2.0**-21
"""One rounding of fp32 in multiplying and one in adding."""


def restored(blocks: Blocks) -> Floats:
    """The weight ``[rows, blocks, 32]`` that ``blocks`` stand for."""
    d = blocks.scales.astype(np.float32)[..., None]
    if blocks.offsets is None:
        return d * (blocks.values.astype(np.float32) - ZERO_POINT)
    return d * blocks.values + blocks.offsets.astype(np.float32)[..., None]


def assert_kept(weight: Floats) -> None:
    blocks = four_bits(weight)
    assert blocks is not None
    assert blocks.bits == 4
    assert blocks.values.max() <= 15
    largest = np.abs(weight).max(axis=-1, keepdims=True)
    assert (np.abs(restored(blocks) - weight) <= largest * ROUNDING).all()


@settings(deadline=None)
@given(HALVES, st.floats(-100, 100, width=16), LEVELS)
def test_weights_of_a_scale_and_an_offset_stay_as_they_are(d: float, m: float, q: NDArray[np.uint8]) -> None:
    """As ``Q4_1`` makes them: both ends of a block's range are levels."""
    q[..., 0], q[..., 1] = 0, 15
    assert_kept(np.float32(d) * q + np.float32(m))


@settings(deadline=None)
@given(HALVES, st.booleans(), LEVELS)
def test_weights_of_a_scale_and_the_largest_one_stay_as_they_are(
    d: float, negative: bool, q: NDArray[np.uint8]
) -> None:
    """As ``Q4_0`` makes them: the largest weight is -8 of 16 levels, whatever its sign."""
    q[..., 0] = 0
    # Only the level of the largest weight has its size, so its sign is the block's.
    q[..., 1:] = np.maximum(q[..., 1:], 1)
    assert_kept(np.float32(-d if negative else d) * (q.astype(np.float32) - 8))


@pytest.mark.parametrize("value", [0.0, 1.0, -3.5])
def test_a_block_of_one_value_stays_as_it_is(value: float) -> None:
    assert_kept(np.full((2, 3, BLOCK), value, np.float32))


@settings(deadline=None)
@given(arrays.arrays(np.float32, (2, 3, BLOCK), elements=st.floats(-1000, 1000, width=32)))
def test_eight_bits_are_half_a_step_off_at_most(weight: Floats) -> None:
    blocks = eight_bits(weight)
    assert blocks.bits == 8
    assert blocks.values.min() >= 1
    step = np.abs(weight).max(axis=-1, keepdims=True) / 127
    # The scale in fp16 is up to 2^-11 off, 127 times over; the smallest scales are 2^-24 apart.
    bound = step * (0.5 + 127 * 2.0**-11) * 1.001 + 127 * 2.0**-25 + 2.0**-25
    assert (np.abs(restored(blocks) - weight) <= bound).all()


def test_one_block_that_needs_eight_bits_decides_for_the_weight() -> None:
    random = np.random.default_rng(0)
    weight = (random.integers(0, 16, (4, 2 * BLOCK)) - 8).astype(np.float32)
    weight[:, ::BLOCK], weight[:, 1::BLOCK] = -8, 7
    assert quantize(weight).bits == 4
    weight[3, BLOCK + 5] = 0.25
    assert quantize(weight).bits == 8


def test_columns_are_filled_up_with_zeros() -> None:
    blocks = quantize(np.random.default_rng(0).standard_normal((2, BLOCK + 3)).astype(np.float32))
    assert blocks.values.shape == (2, 2, BLOCK)
    np.testing.assert_array_equal(blocks.values[:, 1, 3:], ZERO_POINT)
