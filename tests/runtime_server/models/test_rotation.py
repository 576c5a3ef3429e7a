from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime_server.models.rotation import RotatedWeights, Rotation, mixing_matrix
from tests import reference_decoder
from tests.runtime_server.backends.test_cpu import CONFIGS


@pytest.mark.parametrize("size", [1, 2, 3, 48, 64, 96, 576, 4096])
def test_a_rotation_is_orthogonal(size: int) -> None:
    rows = np.random.default_rng(size).standard_normal((4, size)).astype(np.float32)
    rotated = Rotation(size).apply(rows)
    np.testing.assert_allclose(rotated @ rotated.T, rows @ rows.T, rtol=1e-4, atol=1e-3)


@given(st.integers(1, 300))
def test_rows_are_rotated_one_by_one(size: int) -> None:
    rows = np.random.default_rng(size).standard_normal((3, size)).astype(np.float32)
    together = Rotation(size).apply(rows)
    for row, expected in zip(rows, together, strict=True):
        np.testing.assert_allclose(Rotation(size).apply(row[None])[0], expected, rtol=1e-5, atol=1e-5)


def test_a_single_large_channel_is_spread_over_all() -> None:
    row = np.zeros((1, 576), np.float32)
    row[0, 7] = 1000
    rotated = Rotation(576).apply(row)
    assert np.abs(rotated).max() < 4 * np.sqrt((rotated**2).mean())


@pytest.mark.parametrize(("intermediate", "width"), [(1536, 64), (96, 32), (97, 1), (4864, 64)])
def test_the_mixing_matrix_divides_the_inner_activation(intermediate: int, width: int) -> None:
    matrix = mixing_matrix(intermediate)
    assert matrix.shape == (width, width)
    np.testing.assert_allclose(matrix @ matrix.T, np.eye(width), atol=1e-6)


class Unmixed:
    """Rotated weights for the definition in numpy, which does not know of the rotation within the MLP."""

    def __init__(self, rotated: RotatedWeights) -> None:
        self._rotated = rotated

    def load(self, name: str) -> NDArray[np.float32]:
        weight = self._rotated.load(name)
        if not name.endswith(".down"):
            return weight
        matrix = mixing_matrix(weight.shape[1])
        unmixed: NDArray[np.float32] = (weight.reshape(len(weight), -1, len(matrix)) @ matrix.T).reshape(weight.shape)
        return unmixed


@pytest.mark.parametrize("name", CONFIGS)
def test_the_rotated_decoder_is_the_same_function(name: str) -> None:
    config = CONFIGS[name]
    weights = reference_decoder.RandomWeights(config)
    rotated = RotatedWeights(config, weights)
    assert rotated.config == replace(config, tied_embeddings=False)
    tokens = [5, 17, 3, 80, 41]
    expected = reference_decoder.logits(config, weights, tokens)
    actual = reference_decoder.logits(rotated.config, Unmixed(rotated), tokens)
    np.testing.assert_allclose(actual, expected, rtol=1e-3, atol=1e-3)
