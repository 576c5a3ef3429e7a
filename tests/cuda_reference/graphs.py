"""Models of a few nodes, for the tests of the executor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import onnx
from onnx import NodeProto, TensorProto, ValueInfoProto, helper, numpy_helper

from runtime_server.models.graph import IR_VERSION, OPSET
from tests.cuda_reference.tensors import Array

Feeds = Mapping[str, Array | None]
"""Inputs of a node by name, in their order; ``None`` is one that is absent."""


def value(name: str, array: Array, shape: Sequence[str | int] | None = None) -> ValueInfoProto:
    """The declaration of a value that is like ``array``, of its shape unless another is given."""
    kind = helper.np_dtype_to_tensor_dtype(array.dtype)
    return helper.make_tensor_value_info(name, kind, array.shape if shape is None else shape)


def output(name: str, kind: int = TensorProto.FLOAT) -> ValueInfoProto:
    """The declaration of an output of any shape."""
    return helper.make_tensor_value_info(name, kind, None)


def model(
    nodes: Sequence[NodeProto],
    inputs: Sequence[ValueInfoProto],
    outputs: Sequence[ValueInfoProto],
    weights: Mapping[str, Array] | None = None,
    opset: int = OPSET,
) -> onnx.ModelProto:
    """A model of these nodes."""
    tensors = [numpy_helper.from_array(array, name) for name, array in (weights or {}).items()]
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    graph = helper.make_graph(nodes, "test", inputs, outputs, tensors)
    return helper.make_model(graph, opset_imports=opsets, ir_version=IR_VERSION)


def one_node(
    op: str, feeds: Feeds, outputs: Sequence[ValueInfoProto], domain: str = "", **attributes: Any
) -> onnx.ModelProto:
    """A model of one node that takes ``feeds``. An output without a name is absent."""
    names = [name if array is not None else "" for name, array in feeds.items()]
    node = helper.make_node(op, names, [declared.name for declared in outputs], domain=domain, **attributes)
    inputs = [value(name, array) for name, array in feeds.items() if array is not None]
    return model([node], inputs, [declared for declared in outputs if declared.name])


def given(feeds: Feeds) -> dict[str, Array]:
    """The inputs that are not absent."""
    return {name: array for name, array in feeds.items() if array is not None}
