"""The linear layer against its definition, over odd sizes; and that a row's bits are its own."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from runtime_server.models.linear import pack
from tests.runtime_server.native.operators import Floats, Linear, distance

BITS = (4, 8, 32)
CLOSE = {4: 5e-4, 8: 5e-4, 32: 1e-5}
"""Rounding to whole numbers may go the other way where the norm's last bit differs."""


def rows(count: int, width: int, seed: int = 1) -> Floats:
    """Rows of different size."""
    random = np.random.default_rng(seed)
    return (random.standard_normal((count, width)) * np.exp(random.uniform(-3, 3, (count, 1)))).astype(np.float32)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("count", [1, 3, 4, 5, 15, 16, 17, 33, 130])
def test_any_number_of_rows(bits: int, count: int) -> None:
    layer, x = Linear.random(bits, 50, 96), rows(count, 96)
    assert distance(layer.run(x), layer.expected(x)) < CLOSE[bits]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("inputs", [1, 15, 16, 17, 31, 32, 33, 48, 100])
@pytest.mark.parametrize("outputs", [1, 15, 16, 17, 47])
def test_any_size(bits: int, inputs: int, outputs: int) -> None:
    # One number alone is stored with 8 bits.
    layer, x = Linear.random(8 if inputs == 1 else bits, outputs, inputs, norm=True), rows(3, inputs)
    assert distance(layer.run(x), layer.expected(x)) < 2e-3


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("with_residual", [False, True])
def test_what_may_come_with_it(bits: int, norm: bool, bias: bool, with_residual: bool) -> None:
    layer, x = Linear.random(bits, 41, 70, norm=norm, bias=bias), rows(19, 70)
    residual = rows(19, 41, seed=2) if with_residual else None
    assert distance(layer.run(x, residual), layer.expected(x, residual)) < CLOSE[bits]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("outputs", [16, 40, 64])
def test_gated(bits: int, outputs: int) -> None:
    layer, x = Linear.random(bits, outputs, 64, norm=True, gated=True), rows(21, 64)
    assert distance(layer.run(x), layer.expected(x)) < 3 * CLOSE[bits]


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("largest", [False, True])
def test_whole_numbers_are_multiplied_exactly(bits: int, largest: bool) -> None:
    """No sum saturates, not even with every number at the end of its range."""
    random = np.random.default_rng(3)
    low, high = (-8, 7) if bits == 4 else (-127, 127)
    weight = random.integers(low, high + 1, (32, 128)).astype(np.float32)
    x = random.integers(-127, 128, (19, 128)).astype(np.float32)
    if largest:
        weight = np.where(weight < 0, low, high).astype(np.float32)
        weight[:8], weight[8:16] = low, high
        x = np.copysign(127, x).astype(np.float32)
        x[:4], x[4:8] = -127, 127
    # Each block's range is known, so that every scale is 1; 50 is none of 16 levels between.
    x[:, ::32] = 127
    weight[:, ::32], weight[:, 1::32], weight[:, 2::32] = low, high, 5 if bits == 4 else 50
    packed = pack(weight, "fp32" if bits == 32 else "int8")
    assert packed.bits == bits
    np.testing.assert_array_equal(Linear(weight, packed).run(x), x @ weight.T)


@pytest.mark.parametrize("bits", BITS)
def test_rows_of_zeros_and_tiny_rows_stay_finite(bits: int) -> None:
    layer = Linear.random(bits, 20, 64, norm=True)
    x = np.zeros((3, 64), np.float32)
    x[1], x[2] = 1e-30, 1e-42
    result = layer.run(x)
    np.testing.assert_array_equal(result[0], 0)
    assert np.isfinite(result).all()


LAYERS = {bits: Linear.random(bits, 37, 70, norm=True, bias=True) for bits in BITS}
MANY = rows(40, 70, seed=5)
ALONE = {bits: np.concatenate([LAYERS[bits].run(MANY[i : i + 1]) for i in range(len(MANY))]) for bits in BITS}


@settings(deadline=None, max_examples=25)
@given(st.sampled_from(BITS), st.lists(st.integers(0, len(MANY) - 1), min_size=1, max_size=70))
def test_a_row_has_the_same_bits_in_any_batch(bits: int, chosen: list[int]) -> None:
    np.testing.assert_array_equal(LAYERS[bits].run(MANY[chosen]), ALONE[bits][chosen])
