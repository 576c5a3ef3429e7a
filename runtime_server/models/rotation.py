"""A change of basis that leaves a decoder's function as it is and makes its activations easy to quantise.

Activations of language models have a few channels that are a hundred times larger than the others, and a scale that
covers them leaves nothing for the rest. An orthogonal matrix spreads every channel over all of them. Since RMS norm
keeps its result under a rotation once its weight has moved into the layers that follow, the whole residual stream can
live in rotated coordinates: the rotation is multiplied into the weights and costs nothing at run time. Between the two
layers of the MLP stands a nonlinearity, so there a small rotation remains in the graph. Keys and values stay as they
are. (QuaRot, arXiv 2404.00456; SliceGPT, arXiv 2401.15024.)

After it, the rows that come out of a norm have unit RMS and nearly a normal distribution, whatever the token is.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from runtime_server.models.decoder import DecoderConfig, Weights

MIX = 64
"""Width of the rotation that stays in the graph, at most."""
_SEED = 0

Array = NDArray[np.float32]


class Rotation:
    """An orthogonal matrix ``[size, size]`` as a Kronecker product, after signs drawn at random.

    Applying it costs ``size * sum(factors)`` per row rather than ``size ** 2``.
    """

    def __init__(self, size: int) -> None:
        generator = np.random.default_rng(_SEED)
        self._signs = generator.choice(np.array([-1, 1], np.float32), size)
        self._factors = [_factor(n, generator) for n in _split(size)]

    def apply(self, rows: Array) -> Array:
        """``rows [..., size]`` in the new basis."""
        sizes = [len(factor) for factor in self._factors]
        values = (rows * self._signs).reshape(*rows.shape[:-1], *sizes)
        for axis, factor in enumerate(self._factors, start=rows.ndim - 1):
            values = np.moveaxis(np.tensordot(values, factor, axes=(axis, 0)), -1, axis)
        return np.ascontiguousarray(values.reshape(rows.shape), np.float32)


class RotatedWeights:
    """The weights of the same decoder in rotated coordinates, by the names of :mod:`runtime_server.models.decoder`.

    Norm weights are ones. ``lm_head`` is there even where the embeddings were tied, because the final norm's weight
    has moved into it. ``down`` expects its input in the basis of :func:`mixing_matrix`.
    """

    def __init__(self, config: DecoderConfig, weights: Weights) -> None:
        self.config = replace(config, tied_embeddings=False)
        self._tied = config.tied_embeddings
        self._weights = weights
        self._residual = Rotation(config.hidden)

    def load(self, name: str) -> Array:
        """See :class:`runtime_server.models.decoder.Weights`."""
        *layer, kind = name.split(".")
        prefix = ".".join(layer)
        match kind:
            case "embed":
                return self._residual.apply(self._weights.load(name))
            case "lm_head":
                return self._after_norm(self._weights.load("embed" if self._tied else name), "final_norm")
            case "final_norm" | "attn_norm" | "mlp_norm":
                return np.ones_like(self._weights.load(name))
            case "q" | "k" | "v":
                return self._after_norm(self._weights.load(name), f"{prefix}.attn_norm")
            case "o":
                return self._into_residual(self._weights.load(name))
            case "gate" | "up":
                return self._after_norm(self._weights.load(name), f"{prefix}.mlp_norm")
            case "down":
                return self._into_residual(_mixed(self._weights.load(name)))
            case _:
                return self._weights.load(name)

    def _after_norm(self, weight: Array, norm: str) -> Array:
        """A weight ``[out, hidden]`` whose input is the norm's result."""
        return self._residual.apply(weight * self._weights.load(norm))

    def _into_residual(self, weight: Array) -> Array:
        """A weight ``[hidden, in]`` whose output is added to the residual stream."""
        return np.ascontiguousarray(self._residual.apply(weight.T).T)


def mixing_matrix(intermediate: int) -> Array:
    """The rotation ``[width, width]`` of each ``width`` neighbouring channels of the MLP's inner activation.

    The width is the largest power of two up to :data:`MIX` that divides ``intermediate``.
    """
    return _hadamard(min(MIX, intermediate & -intermediate))


def _mixed(weight: Array) -> Array:
    matrix = mixing_matrix(weight.shape[-1])
    blocks = weight.reshape(len(weight), -1, len(matrix)) @ matrix
    return blocks.reshape(weight.shape)


def _split(size: int) -> Sequence[int]:
    """``size`` as a product: its odd part, and powers of two up to 64 for the rest."""
    power = size & -size
    sizes = [size // power] if size != power else []
    while power > 1:
        sizes.append(min(power, 64))
        power //= sizes[-1]
    return sizes or [1]


def _factor(size: int, generator: np.random.Generator) -> Array:
    if size & (size - 1) == 0:
        return _hadamard(size)
    orthogonal, triangle = np.linalg.qr(generator.standard_normal((size, size)))
    return (orthogonal * np.sign(np.diag(triangle))).astype(np.float32)


def _hadamard(size: int) -> Array:
    """Sylvester's Hadamard matrix, normalised. ``size`` is a power of two."""
    matrix = np.ones((1, 1))
    while len(matrix) < size:
        matrix = np.block([[matrix, matrix], [matrix, -matrix]])
    normalised: Array = (matrix / np.sqrt(size)).astype(np.float32)
    return normalised
