"""Runs the CUDA decoder's graph node by node. Sums are fp32; what a node hands on is rounded to its type."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from tests.cuda_reference.paged_attention import paged_attention

Array = NDArray[Any]
Inputs = list[Array | None]
Attributes = dict[str, Any]


class NumpySession:
    """A graph and its weights, with ``run`` as ONNX Runtime's session has it."""

    def __init__(self, path: Path) -> None:
        model = onnx.load(path)
        self.nodes = [
            (node, {a.name: helper.get_attribute_value(a) for a in node.attribute}) for node in model.graph.node
        ]
        self._constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in model.graph.initializer}
        self.inputs = [value.name for value in model.graph.input]
        self.outputs = [value.name for value in model.graph.output]

    def run(self, feeds: Mapping[str, Array]) -> dict[str, Array]:
        """All outputs by name. Caches among ``feeds`` are written to."""
        assert sorted(feeds) == sorted(self.inputs), "other inputs than the graph has"
        values: dict[str, Array] = {**self._constants, **feeds}
        for node, attributes in self.nodes:
            function = _OPERATORS[node.domain, node.op_type]
            results = function([values[name] if name else None for name in node.input], attributes)
            parts = results if isinstance(results, tuple) else (results,)
            values |= {name: part for name, part in zip(node.output, parts, strict=False) if name}
        return {name: values[name] for name in self.outputs}


def _array(x: Array | None) -> Array:
    assert x is not None, "an input is missing"
    return x


def _gather(inputs: Inputs, attributes: Attributes) -> Array:
    data, indices = _array(inputs[0]), _array(inputs[1])
    assert indices.min(initial=0) >= 0, "an index below zero"
    found: Array = np.take(data, indices, axis=attributes["axis"])
    return found


def _gemm(inputs: Inputs, attributes: Attributes) -> Array:
    assert attributes == {"transB": 1}
    rows, weight = _array(inputs[0]), _array(inputs[1])
    bias = _array(inputs[2]).astype(np.float32) if len(inputs) > 2 else 0
    product: Array = (rows.astype(np.float32) @ weight.astype(np.float32).T + bias).astype(rows.dtype)
    return product


def _matmul_4_bits(inputs: Inputs, attributes: Attributes) -> Array:
    assert attributes.keys() == {"N", "K", "bits", "block_size"}
    assert attributes["bits"] == 4
    rows, packed, scales = (_array(x) for x in inputs)
    values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*packed.shape[:2], -1).astype(np.float32) - 8
    weight = (values * scales.astype(np.float32)[..., None]).reshape(attributes["N"], attributes["K"])
    product: Array = (rows.astype(np.float32) @ weight.T).astype(rows.dtype)
    return product


def _norm(rows: Array, gain: Array, epsilon: float) -> Array:
    wide = rows.astype(np.float32)
    scaled = wide / np.sqrt((wide * wide).mean(axis=-1, keepdims=True) + epsilon)
    result: Array = (scaled * gain.astype(np.float32)).astype(gain.dtype)
    return result


def _simplified_norm(inputs: Inputs, attributes: Attributes) -> Array:
    return _norm(_array(inputs[0]), _array(inputs[1]), attributes["epsilon"])


def _skip_norm(inputs: Inputs, attributes: Attributes) -> tuple[Array, None, None, Array]:
    rows, skip, gain = (_array(x) for x in inputs)
    total = rows.astype(np.float32) + skip.astype(np.float32)
    return _norm(total, gain, attributes["epsilon"]), None, None, total.astype(rows.dtype)


def _quick_gelu(inputs: Inputs, attributes: Attributes) -> Array:
    x = _array(inputs[0])
    wide = x.astype(np.float32)
    result: Array = (wide / (1 + np.exp(-attributes["alpha"] * wide))).astype(x.dtype)
    return result


def _top(inputs: Inputs, attributes: Attributes) -> tuple[Array, Array]:
    x, count = _array(inputs[0]), int(_array(inputs[1])[0])
    ids = np.argsort(-x, axis=-1, kind="stable")[:, :count]
    return np.take_along_axis(x, ids, axis=-1), ids


def _cast(inputs: Inputs, attributes: Attributes) -> Array:
    return _array(inputs[0]).astype(helper.tensor_dtype_to_np_dtype(attributes["to"]))


def _elementwise(function: Callable[..., Array]) -> Callable[[Inputs, Attributes], Array]:
    def apply(inputs: Inputs, attributes: Attributes) -> Array:
        arrays = [_array(x) for x in inputs]
        return function(*(x.astype(np.float32) for x in arrays)).astype(arrays[0].dtype)

    return apply


_OPERATORS: dict[tuple[str, str], Callable[[Inputs, Attributes], Any]] = {
    ("", "Add"): _elementwise(np.add),
    ("", "Cast"): _cast,
    ("", "Concat"): lambda inputs, attributes: np.concatenate([_array(x) for x in inputs], axis=attributes["axis"]),
    ("", "Exp"): _elementwise(np.exp),
    ("", "Gather"): _gather,
    ("", "Gemm"): _gemm,
    ("", "Log"): _elementwise(np.log),
    ("", "Mul"): _elementwise(np.multiply),
    ("", "ReduceSum"): lambda inputs, _: _array(inputs[0]).sum(axis=tuple(_array(inputs[1])), keepdims=True),
    ("", "SimplifiedLayerNormalization"): _simplified_norm,
    ("", "Split"): lambda inputs, attributes: tuple(np.split(_array(inputs[0]), attributes["num_outputs"], axis=1)),
    ("", "Sub"): _elementwise(np.subtract),
    ("", "TopK"): _top,
    ("com.microsoft", "MatMulNBits"): _matmul_4_bits,
    ("com.microsoft", "PagedAttention"): paged_attention,
    ("com.microsoft", "QuickGelu"): _quick_gelu,
    ("com.microsoft", "SkipSimplifiedLayerNormalization"): _skip_norm,
}
