"""One node of a graph: an operator's function with the names of its inputs and outputs, and its attributes."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from inspect import Parameter
from typing import Any, get_args

import numpy as np
from onnx import AttributeProto, NodeProto, helper, numpy_helper

from tests.cuda_reference.tensors import Array, GraphError

Operator = Callable[..., Any]
"""Takes inputs by position and attributes by name, as the operator's schema has them, and makes one array, or a tuple
where there can be several. An input may be absent where its annotation admits ``None``."""


@dataclass(frozen=True, slots=True)
class Node:
    """A node that can be run."""

    op_type: str
    name: str
    operator: Operator
    inputs: tuple[str, ...]
    """Names; an absent one is empty."""
    outputs: tuple[str, ...]
    attributes: Mapping[str, Any]

    @classmethod
    def of(cls, proto: NodeProto, operators: Mapping[tuple[str, str], Operator]) -> Node:
        """Raises :class:`GraphError` where there is no such operator, or it does not take what the node gives."""
        name = proto.name or next(filter(None, proto.output), "")
        operator = operators.get((proto.domain, proto.op_type))
        if operator is None:
            raise GraphError(f"{proto.op_type} {name!r}: no such operator of the domain {proto.domain!r} is known here")
        attributes = {attribute.name: _value(attribute) for attribute in proto.attribute}
        problem = _misfit(operator, proto.input, attributes)
        if problem:
            raise GraphError(f"{proto.op_type} {name!r}: {problem}")
        return cls(proto.op_type, name, operator, tuple(proto.input), tuple(proto.output), attributes)

    def run(self, values: Mapping[str, Array]) -> dict[str, Array]:
        """The outputs that have a name.

        They are read-only, save for an input that the operator wrote to and hands on: a cache. A cache that a node
        computed is a copy on the card, so that writing to it would be in vain.

        Raises:
            GraphError: A type, shape or value is wrong.
        """
        unknown = [name for name in self.inputs if name and name not in values]
        if unknown:
            raise GraphError(f"{self}: nothing before it computes {', '.join(unknown)}")
        inputs = [values[name] if name else None for name in self.inputs]
        try:
            with np.errstate(all="ignore"):  # a card computes infinities without a warning
                results = self.operator(*inputs, **self.attributes)
        except (ValueError, TypeError, IndexError) as error:
            raise GraphError(f"{self}: {error}") from error
        parts = results if isinstance(results, tuple) else (results,)
        found: dict[str, Array] = {}
        for place, name in enumerate(self.outputs):
            if not name:
                continue
            if place >= len(parts) or parts[place] is None:
                raise GraphError(f"{self}: output {place}, {name!r}, is none that is computed")
            written = any(parts[place] is value for value in inputs)
            found[name] = parts[place] if written else _read_only(parts[place])
        return found

    def __str__(self) -> str:
        return f"{self.op_type} {self.name!r}"


def _value(attribute: AttributeProto) -> Any:
    value = helper.get_attribute_value(attribute)
    if attribute.type == AttributeProto.TENSOR:
        return numpy_helper.to_array(value)
    return value.decode() if isinstance(value, bytes) else value


def _misfit(operator: Operator, inputs: Any, attributes: Mapping[str, Any]) -> str:
    """What the operator does not take or lacks; empty where it can be called."""
    parameters = inspect.signature(operator, eval_str=True).parameters.values()
    by_position = [p for p in parameters if p.kind is Parameter.POSITIONAL_ONLY]
    by_name = {p.name: p for p in parameters if p.kind is Parameter.KEYWORD_ONLY}
    any_number = any(p.kind is Parameter.VAR_POSITIONAL for p in parameters)
    unknown = attributes.keys() - by_name.keys()
    if unknown:
        return f"unknown attributes: {', '.join(sorted(unknown))}"
    lacking = [p.name for p in by_name.values() if p.default is Parameter.empty and p.name not in attributes]
    if lacking:
        return f"missing attributes: {', '.join(lacking)}"
    if len(inputs) > len(by_position) and not any_number:
        return f"{len(inputs)} inputs, {len(by_position)} at most"
    given = [*inputs, *[""] * (len(by_position) - len(inputs))]
    needed = [p.name for p, name in zip(by_position, given, strict=False) if not (name or _optional(p))]
    if any_number and not all(inputs):
        return "an absent input"
    return f"missing inputs: {', '.join(needed)}" if needed else ""


def _optional(parameter: Parameter) -> bool:
    return type(None) in get_args(parameter.annotation)


def _read_only(result: Any) -> Array:
    view = np.asarray(result).view()
    view.flags.writeable = False
    return view
