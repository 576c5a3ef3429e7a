"""Operators that compute: sums, products, norms, reductions and what is done to each element."""

from __future__ import annotations

from collections.abc import Callable
from functools import reduce
from typing import Any

import numpy as np

from tests.cuda_reference.tensors import Array, Floats, one_float_type, one_type, rounded, wide


def unary(function: Callable[[Floats], Any]) -> Callable[[Array], Array]:
    """The operator that does ``function`` to each element."""

    def apply(x: Array, /) -> Array:
        return rounded(function, x)

    return apply


def binary(function: Callable[[Array, Array], Any]) -> Callable[[Array, Array], Array]:
    """The operator that makes one element of two, of arrays that are broadcast."""

    def apply(a: Array, b: Array, /) -> Array:
        return rounded(function, a, b)

    return apply


def comparison(function: Callable[[Array, Array], Any]) -> Callable[[Array, Array], Array]:
    """As :func:`binary`, whose outputs are truth values."""

    def apply(a: Array, b: Array, /) -> Array:
        one_type(a, b)
        return np.asarray(function(a, b))

    return apply


def variadic(function: Callable[[Array, Array], Any]) -> Callable[..., Array]:
    """As :func:`binary`, of any number of inputs."""

    def apply(*arrays: Array) -> Array:
        return rounded(lambda *parts: reduce(function, parts), *arrays)

    return apply


def reduction(function: Callable[..., Any]) -> Callable[..., Array]:
    """The operator that makes one element of all that lie along some axes, of all axes where none are given."""

    def apply(data: Array, axes: Array | None = None, /, *, keepdims: int = 1, noop_with_empty_axes: int = 0) -> Array:
        along = None if axes is None or not axes.size else tuple(axes.tolist())
        if along is None and noop_with_empty_axes:
            return data.view()
        return rounded(lambda x: function(x, axis=along, keepdims=bool(keepdims)), data)

    return apply


def total(x: Array, *, axis: tuple[int, ...] | None, keepdims: bool) -> Array:
    """The sum, of integers too, in their type."""
    return np.asarray(np.sum(x, axis=axis, keepdims=keepdims, dtype=x.dtype))


def log_sum_exp(x: Floats, *, axis: tuple[int, ...] | None, keepdims: bool) -> Array:
    """The logarithm of the sum of exponentials, which may be beyond fp32 themselves."""
    peak = x.max(axis=axis, keepdims=True)
    shift = np.where(np.isfinite(peak), peak, np.float32(0))
    result = np.log(np.exp(x - shift).sum(axis=axis, keepdims=True)) + shift
    return np.asarray(result if keepdims else np.squeeze(result, axis=axis))


def sigmoid(x: Floats) -> Floats:
    """Without an exponential that is beyond fp32."""
    return np.exp(-np.logaddexp(np.float32(0), -x))


def quick_gelu(x: Array, /, *, alpha: float = 1.702) -> Array:
    """The product of ``x`` and the sigmoid of ``alpha * x``: silu where ``alpha`` is 1."""
    return rounded(lambda values: values * sigmoid(np.float32(alpha) * values), x)


def gemm(
    a: Array,
    b: Array,
    c: Array | None = None,
    /,
    *,
    alpha: float = 1.0,
    beta: float = 1.0,
    transA: int = 0,  # noqa: N803 - as the schema has it
    transB: int = 0,  # noqa: N803
) -> Array:
    """``alpha * a @ b + beta * c``, of matrices that may be transposed."""
    one_float_type(a, b)
    if a.ndim != 2 or b.ndim != 2:
        raise ValueError(f"matrices of {a.ndim} and {b.ndim} dimensions, which should be 2")
    left, right = (matrix.T if turned else matrix for matrix, turned in ((a, transA), (b, transB)))
    if c is None:
        return rounded(lambda x, y: np.float32(alpha) * (x @ y), left, right)
    return rounded(lambda x, y, z: np.float32(alpha) * (x @ y) + np.float32(beta) * z, left, right, c)


def simplified_layer_norm(
    x: Array, scale: Array, /, *, axis: int = -1, epsilon: float = 1e-5, stash_type: int = 1
) -> tuple[Array, Array]:
    """ONNX Runtime's RMS norm over the last axis, and the inverse root of the mean square, fp32."""
    one_float_type(x, scale)
    if axis not in (-1, x.ndim - 1):
        raise ValueError(f"axis {axis}, which should be the last")
    if stash_type != 1:
        raise ValueError(f"stash_type {stash_type}, which should be 1, fp32")
    return rms_norm(wide(x), scale, epsilon)


def skip_simplified_layer_norm(
    x: Array, skip: Array, gamma: Array, bias: Array | None = None, /, *, epsilon: float = 1e-12
) -> tuple[Array, None, Array, Array]:
    """The RMS norm of a sum, the inverse root of its mean square, and the sum itself. There is no mean to hand out."""
    parts = (x, skip) if bias is None else (x, skip, bias)
    kind = one_float_type(*parts, gamma)
    if x.shape != skip.shape:
        raise ValueError(f"a sum of the shapes {x.shape} and {skip.shape}, which should be one")
    summed = reduce(np.add, map(wide, parts))
    normed, inverse = rms_norm(summed, gamma, epsilon)
    return normed, None, inverse, summed.astype(kind)


def rms_norm(x: Floats, gain: Array, epsilon: float) -> tuple[Array, Array]:
    """The norm over the last axis in the type of ``gain``, and the inverse root of the mean square, fp32."""
    if gain.shape != x.shape[-1:]:
        raise ValueError(f"a gain of the shape {gain.shape} for rows of {x.shape[-1]}")
    inverse = 1 / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + np.float32(epsilon))
    return (x * inverse * wide(gain)).astype(gain.dtype), inverse
