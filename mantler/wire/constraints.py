"""What an output must match, as fields of a protobuf message and back."""

from __future__ import annotations

from mantler import messages as m
from mantler.v1 import generation_pb2


def write_constraint(message: generation_pb2.GenerateRequest, constraint: m.Constraint) -> None:
    """Sets the field of ``message`` that ``constraint`` goes into."""
    match constraint:
        case m.JsonSchemaConstraint():
            message.json_schema = constraint.schema
        case m.JsonObjectConstraint():
            message.json_object.SetInParent()
        case m.RegexConstraint():
            message.regex = constraint.pattern
        case m.GrammarConstraint():
            message.grammar = constraint.grammar
        case m.ChoiceConstraint():
            message.choice.values.extend(constraint.values)


def constraint_from_proto(message: generation_pb2.GenerateRequest) -> m.Constraint | None:
    """What the output of a request must match, if anything. Raises ``MantlerError`` for one of a bad size."""
    match message.WhichOneof("constraint"):
        case "json_schema":
            return m.JsonSchemaConstraint(message.json_schema)
        case "json_object":
            return m.JsonObjectConstraint()
        case "regex":
            return m.RegexConstraint(message.regex)
        case "grammar":
            return m.GrammarConstraint(message.grammar)
        case "choice":
            return m.ChoiceConstraint(tuple(message.choice.values))
        case None:
            return None
