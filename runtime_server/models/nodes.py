"""Collects the nodes and constants of an ONNX graph."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import helper

from runtime_server.models.tensor_file import TensorFile

CONTRIB = "com.microsoft"
"""Domain of ONNX Runtime's own operators, described in its ``ContribOperators.md``."""


class Nodes:
    """Nodes in the order of their execution. Each is named after its first output."""

    def __init__(self, file: TensorFile) -> None:
        self.list: list[onnx.NodeProto] = []
        self._file = file
        self._shared: set[str] = set()

    def add(self, op: str, inputs: list[str], output: str, *more: str, domain: str = "", **attributes: Any) -> str:
        """Adds a node with the outputs ``output`` and ``more``; returns ``output``."""
        node = helper.make_node(op, inputs, [output, *more], name=output, domain=domain, **attributes)
        self.list.append(node)
        return output

    def constant(self, name: str, array: NDArray[Any]) -> str:
        """Adds an initializer; returns its name."""
        return self._file.add(name, array)

    def shared(self, name: str, value: Any, dtype: Any) -> str:
        """A small initializer that several nodes use under one name. Added once."""
        if name not in self._shared:
            self._shared.add(name)
            self._file.add(name, np.array(value, dtype))
        return name
