"""Collects the nodes and constants of an ONNX graph."""

from __future__ import annotations

from typing import Any

import onnx
from numpy.typing import NDArray
from onnx import helper

from runtime_server.models.tensor_file import TensorFile

NATIVE = "mantler"
"""Domain of our own operators; ``runtime_server/native`` describes them."""
CONTRIB = "com.microsoft"
"""Domain of the operators that ONNX Runtime adds to the standard."""


class Nodes:
    """Nodes in the order of their execution. Each is named after its output."""

    def __init__(self, file: TensorFile) -> None:
        self.list: list[onnx.NodeProto] = []
        self._file = file

    def add(self, op: str, inputs: list[str], output: str, domain: str = "", **attributes: Any) -> str:
        """Adds a node with the output ``output``; returns it."""
        self.add_many(op, inputs, [output], domain, **attributes)
        return output

    def add_many(self, op: str, inputs: list[str], outputs: list[str], domain: str = "", **attributes: Any) -> None:
        """Adds a node with several outputs; empty names stand for those that nobody wants."""
        self.list.append(helper.make_node(op, inputs, outputs, name=outputs[0], domain=domain, **attributes))

    def native(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        """Adds one of our own operators; empty names stand for inputs that are left out."""
        while not inputs[-1]:
            inputs = inputs[:-1]
        return self.add(op, inputs, output, domain=NATIVE, **attributes)

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Adds an initializer; returns its name."""
        return self._file.add(name, array)
