"""Runs a graph node by node. Its weights and what it hands from node to node have the types of the graph."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import onnx
from onnx import ValueInfoProto, helper, numpy_helper
from onnx.external_data_helper import uses_external_data

from tests.cuda_reference.node import Node
from tests.cuda_reference.operators import OPERATORS
from tests.cuda_reference.tensors import Array, GraphError

MINIMUM_OPSET = 18
"""From here on, reductions take their axes as an input."""


class NumpySession:
    """A graph and its weights, with ``run`` as ONNX Runtime's session has it.

    Args:
        model: the model, its bytes, or the path of its file, beside which its external weights may lie.

    Raises:
        GraphError: An operator, an attribute or an input of a node is unknown or missing, or a weight is not at hand.
    """

    def __init__(self, model: onnx.ModelProto | bytes | Path) -> None:
        if isinstance(model, bytes):
            model = onnx.load_from_string(model)
        elif isinstance(model, Path):
            model = onnx.load(model)
        graph = model.graph
        opset = next((entry.version for entry in model.opset_import if not entry.domain), 0)
        if opset < MINIMUM_OPSET:
            raise GraphError(f"opset {opset}, {MINIMUM_OPSET} at least")
        outside = [tensor.name for tensor in graph.initializer if uses_external_data(tensor)]
        if outside:
            raise GraphError(f"weights in another file, which a path leads to: {', '.join(outside)}")
        self.inputs = {value.name: value for value in graph.input}
        """What each input is declared as, by name."""
        self.outputs = {value.name: value for value in graph.output}
        """Likewise of the outputs."""
        self._weights = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
        for weight in self._weights.values():
            weight.flags.writeable = False
        self.nodes = [Node.of(node, OPERATORS) for node in graph.node]
        """In the order in which they run."""

    def run(self, output_names: Sequence[str] | None, feeds: Mapping[str, Array]) -> list[Array]:
        """The outputs of these names, of values inside the graph too, or all outputs of the graph.

        Caches among ``feeds`` are written to, and an output that is one is the very array of ``feeds``.

        Raises:
            GraphError: An input is missing, unknown or not as declared, or a node does not take what it gets.
        """
        if feeds.keys() != self.inputs.keys():
            raise GraphError(f"inputs that are missing or unknown: {sorted(feeds.keys() ^ self.inputs.keys())}")
        for name, value in feeds.items():
            _check(self.inputs[name], value)
        values = {**self._weights, **feeds}
        for node in self.nodes:
            values |= node.run(values)
        for name, declared in self.outputs.items():
            if name not in values:
                raise GraphError(f"nothing computes the output {name}")
            _check(declared, values[name])
        wanted = list(self.outputs) if output_names is None else output_names
        unknown = [name for name in wanted if name not in values]
        if unknown:
            raise GraphError(f"outputs that are unknown: {unknown}")
        return [values[name] if values[name].flags.writeable else values[name].copy() for name in wanted]


def _check(declared: ValueInfoProto, array: Array) -> None:
    """Raises :class:`GraphError` where the type, the rank or a size that the graph states is another."""
    kind = helper.tensor_dtype_to_np_dtype(declared.type.tensor_type.elem_type)
    if array.dtype != kind:
        raise GraphError(f"{declared.name} is {array.dtype}, the graph says {kind}")
    if not declared.type.tensor_type.HasField("shape"):
        return
    sizes = [dim.dim_value if dim.HasField("dim_value") else None for dim in declared.type.tensor_type.shape.dim]
    if len(sizes) != array.ndim or any(size not in (None, had) for size, had in zip(sizes, array.shape, strict=True)):
        raise GraphError(f"{declared.name} has the shape {list(array.shape)}, the graph says {sizes}")
