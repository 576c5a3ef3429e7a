"""com.microsoft.MatMulNBits with 4 bits."""

from __future__ import annotations

import numpy as np

from tests.cuda_reference.tensors import Array, Floats, one_float_type, rounded, wide

_BITS = 4
_MIDDLE = 8
"""Stands for zero where there are no zero points."""


def matmul_n_bits(
    a: Array,
    b: Array,
    scales: Array,
    zero_points: Array | None = None,
    g_idx: Array | None = None,
    bias: Array | None = None,
    /,
    *,
    N: int,  # noqa: N803 - as the schema has it
    K: int,  # noqa: N803
    block_size: int,
    bits: int = _BITS,
    accuracy_level: int = 0,
    weight_prepacked: int = 0,
) -> Array:
    """Rows times a weight ``[N, K]`` of whole numbers 0 to 15, less a zero point, times a scale for each block.

    Args:
        a: ``[..., K]``.
        b: ``uint8 [N, blocks, block_size / 2]``, the earlier number in the low bits.
        scales: ``[N, blocks]``, of the type of ``a``.
        zero_points: ``uint8 [N, ceil(blocks / 2)]``, packed likewise, or ``[N, blocks]`` of the type of ``a``.
        g_idx: none.
        bias: ``[N]``, of the type of ``a``.
        accuracy_level: how coarse a kernel may compute, which this one does not.

    Raises:
        ValueError: Other bits, a size that the kernel does not have, or a shape that is not as above.
        TypeError: A type that is not as above.
    """
    if bits != _BITS or weight_prepacked or g_idx is not None:
        raise ValueError("bits that are not 4, a prepacked weight, or g_idx, which this reference does not have")
    if block_size < 16 or block_size & (block_size - 1):
        raise ValueError(f"block_size {block_size}, which should be a power of two, 16 at least")
    blocks = -(-K // block_size)
    _check("a", a, (*a.shape[:-1], K))
    _check("b", b, (N, blocks, block_size // 2))
    _check("scales", scales, (N, blocks))
    one_float_type(a, scales)
    if b.dtype != np.uint8:
        raise TypeError(f"a packed weight of the type {b.dtype}, which should be uint8")
    values = _unpacked(b) - _zeros(zero_points, scales)[..., None]
    weight = (values * wide(scales)[..., None]).reshape(N, -1)[:, :K]
    if bias is None:
        return rounded(lambda rows: rows @ weight.T, a)
    _check("bias", bias, (N,))
    return rounded(lambda rows, added: rows @ weight.T + added, a, bias)


def _zeros(zero_points: Array | None, scales: Array) -> Floats:
    """The zero points ``[N, blocks]``."""
    if zero_points is None:
        return np.full(scales.shape, _MIDDLE, np.float32)
    outputs, blocks = scales.shape
    if zero_points.dtype == np.uint8:
        _check("zero_points", zero_points, (outputs, -(-blocks // 2)))
        return _unpacked(zero_points)[:, :blocks]
    one_float_type(zero_points, scales)
    _check("zero_points", zero_points, scales.shape)
    return wide(zero_points)


def _unpacked(packed: Array) -> Floats:
    """Two numbers of each byte, along the last axis."""
    return wide(np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:-1], -1))


def _check(name: str, array: Array, shape: tuple[int, ...]) -> None:
    if array.shape != shape:
        raise ValueError(f"{name} of the shape {array.shape}, which should be {shape}")
