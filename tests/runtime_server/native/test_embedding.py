"""The embedding hands out the packed weight's rows as they are."""

from __future__ import annotations

import numpy as np
import pytest

from runtime_server.models.linear import Packed, pack
from runtime_server.models.quantize import BLOCK
from tests.runtime_server.native.operators import Floats, four_bit_weight, run


def embed(packed: Packed, ids: list[int]) -> Floats:
    attributes = {"bits": packed.bits, "in_features": packed.in_features, "out_features": packed.out_features}
    return run("MantlerEmbedding", {"ids": np.array(ids, np.int64), "weight": packed.data}, **attributes)


@pytest.mark.parametrize("shape", [(1, 2), (16, 32), (33, 100), (50, 64)])
def test_fp32_comes_back_bit_for_bit(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    np.testing.assert_array_equal(embed(pack(weight, "fp32"), list(range(shape[0]))), weight)


@pytest.mark.parametrize("shape", [(1, 2), (16, 32), (33, 100), (50, 64)])
def test_published_four_bits_come_back(shape: tuple[int, int]) -> None:
    weight = four_bit_weight(np.random.default_rng(0), *shape)
    packed = pack(weight, "int8")
    assert packed.bits == 4
    np.testing.assert_allclose(embed(packed, list(range(shape[0]))), weight, rtol=0, atol=1e-6)


@pytest.mark.parametrize("shape", [(1, 1), (16, 32), (33, 100), (50, 64)])
def test_eight_bits_come_back_within_half_a_step(shape: tuple[int, int]) -> None:
    weight = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    packed = pack(weight, "int8")
    assert packed.bits == 8
    result = embed(packed, list(range(shape[0])))
    for start in range(0, shape[1], BLOCK):
        part = weight[:, start : start + BLOCK]
        step = np.abs(part).max(axis=1, keepdims=True) / 127
        # A scale of fp16 is up to 2^-11 off, 127 times.
        assert (np.abs(result[:, start : start + BLOCK] - part) <= step * (0.5 + 127 * 2.0**-11) * 1.001).all()


def test_ids_come_in_any_order_and_any_number_of_times() -> None:
    weight = np.arange(40 * 32, dtype=np.float32).reshape(40, 32)
    ids = [39, 0, 17, 17, 16, 15]
    np.testing.assert_array_equal(embed(pack(weight, "fp32"), ids), weight[ids])
