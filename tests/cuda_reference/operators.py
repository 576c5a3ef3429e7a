"""Operators that move values, and the table of all."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from onnx import helper

from tests.cuda_reference import arithmetic
from tests.cuda_reference.node import Operator
from tests.cuda_reference.paged_attention import paged_attention
from tests.cuda_reference.quantized import matmul_n_bits
from tests.cuda_reference.tensors import FLOATS, Array, one_type, wide

CONTRIB = "com.microsoft"


def _constant(
    *,
    value: Array | None = None,
    value_int: int | None = None,
    value_ints: Sequence[int] | None = None,
    value_float: float | None = None,
    value_floats: Sequence[float] | None = None,
) -> Array:
    if value is not None:
        return value
    whole = value_ints if value_int is None else value_int
    if whole is not None:
        return np.array(whole, np.int64)
    return np.array(value_floats if value_float is None else value_float, np.float32)


def _cast(x: Array, /, *, to: int) -> Array:
    return x.astype(helper.tensor_dtype_to_np_dtype(to))


def _identity(x: Array, /) -> Array:
    return x.view()


def _shape(data: Array, /, *, start: int = 0, end: int | None = None) -> Array:
    return np.array(data.shape[start:end], np.int64)


def _reshape(data: Array, shape: Array, /, *, allowzero: int = 0) -> Array:
    sizes = shape.tolist()
    if not allowzero:
        sizes = [size or data.shape[place] for place, size in enumerate(sizes)]
    return data.reshape(sizes)


def _unsqueeze(data: Array, axes: Array, /) -> Array:
    return np.expand_dims(data, tuple(axes.tolist()))


def _squeeze(data: Array, axes: Array | None = None, /) -> Array:
    return np.squeeze(data, None if axes is None else tuple(axes.tolist()))


def _transpose(data: Array, /, *, perm: Sequence[int] | None = None) -> Array:
    return data.transpose(perm)


def _concat(*arrays: Array, axis: int) -> Array:
    one_type(*arrays)
    return np.concatenate(arrays, axis=axis)


def _split(
    data: Array, split: Array | None = None, /, *, axis: int = 0, num_outputs: int | None = None
) -> tuple[Array, ...]:
    length = data.shape[axis]
    if split is None:
        if num_outputs is None:
            raise ValueError("neither split nor num_outputs")
        size = math.ceil(length / num_outputs)
        return tuple(np.split(data, range(size, size * num_outputs, size), axis))
    if split.sum() != length:
        raise ValueError(f"parts of {split.tolist()} of the length {length}")
    return tuple(np.split(data, np.cumsum(split)[:-1], axis))


def _slice(data: Array, starts: Array, ends: Array, axes: Array | None = None, steps: Array | None = None, /) -> Array:
    along = range(len(starts)) if axes is None else axes.tolist()
    strides = [1] * len(starts) if steps is None else steps.tolist()
    places = [slice(None)] * data.ndim
    for axis, start, end, stride in zip(along, starts.tolist(), ends.tolist(), strides, strict=True):
        places[axis] = slice(start, end, stride)
    return data[tuple(places)]


def _gather(data: Array, indices: Array, /, *, axis: int = 0) -> Array:
    return np.take(data, indices, axis=axis)


def _gather_elements(data: Array, indices: Array, /, *, axis: int = 0) -> Array:
    return np.take_along_axis(data[_reach(data, indices, axis)], indices, axis)


def _scatter_elements(
    data: Array, indices: Array, updates: Array, /, *, axis: int = 0, reduction: str = "none"
) -> Array:
    _plain(reduction)
    one_type(data, updates)
    result = data.copy()
    np.put_along_axis(result[_reach(data, indices, axis)], indices, updates, axis)
    return result


def _scatter_nd(data: Array, indices: Array, updates: Array, /, *, reduction: str = "none") -> Array:
    _plain(reduction)
    one_type(data, updates)
    result = data.copy()
    result[tuple(np.moveaxis(indices, -1, 0))] = updates
    return result


def _where(condition: Array, x: Array, y: Array, /) -> Array:
    one_type(x, y)
    return np.where(condition, x, y)


def _top_k(
    x: Array,
    k: Array,
    /,
    *,
    axis: int = -1,
    largest: int = 1,
    sorted: int = 1,  # noqa: A002 - as the schema has it
) -> tuple[Array, Array]:
    count = int(k.item())
    if count > x.shape[axis]:
        raise ValueError(f"{count} of {x.shape[axis]} values")
    keys = _comparable(x)
    # Of equal values the first comes first, whichever way they are sorted.
    order = np.argsort(-keys if largest else keys, axis=axis, kind="stable")
    indices = np.take(order, range(count), axis=axis)
    return np.take_along_axis(x, indices, axis), indices


def _arg_max(data: Array, /, *, axis: int = 0, keepdims: int = 1) -> Array:
    return np.asarray(np.argmax(_comparable(data), axis=axis, keepdims=bool(keepdims)))


def _comparable(x: Array) -> Array:
    return wide(x) if x.dtype in FLOATS else x


def _plain(reduction: str) -> None:
    if reduction != "none":
        raise ValueError(f"reduction {reduction}, which this reference does not have")


def _reach(data: Array, indices: Array, axis: int) -> tuple[slice, ...]:
    """The part of ``data`` that ``indices``, which may be smaller on other axes, stand for."""
    whole = axis % data.ndim
    return tuple(slice(None if place == whole else size) for place, size in enumerate(indices.shape))


OPERATORS: Mapping[tuple[str, str], Operator] = {
    ("", "Add"): arithmetic.binary(np.add),
    ("", "ArgMax"): _arg_max,
    ("", "Cast"): _cast,
    ("", "Concat"): _concat,
    ("", "Constant"): _constant,
    ("", "Equal"): arithmetic.comparison(np.equal),
    ("", "Exp"): arithmetic.unary(np.exp),
    ("", "Gather"): _gather,
    ("", "GatherElements"): _gather_elements,
    ("", "Gemm"): arithmetic.gemm,
    ("", "Identity"): _identity,
    ("", "Less"): arithmetic.comparison(np.less),
    ("", "Log"): arithmetic.unary(np.log),
    ("", "MatMul"): arithmetic.binary(np.matmul),
    ("", "Max"): arithmetic.variadic(np.maximum),
    ("", "Min"): arithmetic.variadic(np.minimum),
    ("", "Mul"): arithmetic.binary(np.multiply),
    ("", "ReduceLogSumExp"): arithmetic.reduction(arithmetic.log_sum_exp),
    ("", "ReduceMax"): arithmetic.reduction(np.max),
    ("", "ReduceSum"): arithmetic.reduction(arithmetic.total),
    ("", "Reshape"): _reshape,
    ("", "ScatterElements"): _scatter_elements,
    ("", "ScatterND"): _scatter_nd,
    ("", "Shape"): _shape,
    ("", "Sigmoid"): arithmetic.unary(arithmetic.sigmoid),
    ("", "SimplifiedLayerNormalization"): arithmetic.simplified_layer_norm,
    ("", "Slice"): _slice,
    ("", "Split"): _split,
    ("", "Squeeze"): _squeeze,
    ("", "Sub"): arithmetic.binary(np.subtract),
    ("", "TopK"): _top_k,
    ("", "Transpose"): _transpose,
    ("", "Unsqueeze"): _unsqueeze,
    ("", "Where"): _where,
    (CONTRIB, "MatMulNBits"): matmul_n_bits,
    (CONTRIB, "PagedAttention"): paged_attention,
    (CONTRIB, "QuickGelu"): arithmetic.quick_gelu,
    (CONTRIB, "SkipSimplifiedLayerNormalization"): arithmetic.skip_simplified_layer_norm,
}
"""Functions by domain and operator."""
