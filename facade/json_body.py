"""The JSON object that a client sent, checked against a model of its fields. Every error names its parameter."""

from __future__ import annotations

from typing import Any, TypeVar

import pydantic_core
from pydantic import BaseModel, ConfigDict, ValidationError

from mantler.errors import ErrorCode, MantlerError, invalid


class JsonBody(BaseModel):
    """An object of known fields. Others are ignored, and ``null`` means the default, as with OpenAI."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True, protected_namespaces=())


Body = TypeVar("Body", bound=JsonBody)


def json_object(raw: bytes) -> dict[str, Any]:
    """The request's body. Raises INVALID_REQUEST for what is no JSON object."""
    try:
        # Refuses what Python's own parser lets through: NaN, lone surrogates, nesting that ends in RecursionError.
        value = pydantic_core.from_json(raw, allow_inf_nan=False)
    except ValueError:
        raise MantlerError(ErrorCode.INVALID_REQUEST, "The body is not valid JSON in UTF-8.") from None
    if not isinstance(value, dict):
        raise MantlerError(ErrorCode.INVALID_REQUEST, "The body must be a JSON object.")
    return value


def validated(value: Any, kind: type[Body], where: str = "") -> Body:
    """``value`` as a ``kind``. Raises INVALID_PARAMETER.

    Args:
        where: the place of ``value`` in the body, as errors name it; empty for the body itself.
    """
    try:
        return kind.model_validate(value)
    except ValidationError as error:
        raise _named_error(error, where) from None


_EXPECTED = {
    "missing": "is required.",
    "string_type": "must be a string.",
    "string_too_short": "must not be empty.",
    "string_unicode": "must be valid Unicode.",
    "int_type": "must be an integer.",
    "int_from_float": "must be an integer.",
    "float_type": "must be a number.",
    "finite_number": "must be a finite number.",
    "bool_type": "must be true or false.",
    "list_type": "must be an array.",
    "dict_type": "must be an object.",
    "model_type": "must be an object.",
    "model_attributes_type": "must be an object.",
}


def _named_error(error: ValidationError, where: str) -> MantlerError:
    first = error.errors(include_url=False, include_input=False)[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"])
    param = f"{where}{path}".removeprefix(".")
    if first["type"] == "too_long":
        return invalid(param, f"must hold at most {first['ctx']['max_length']} elements.")
    return invalid(param, _EXPECTED.get(first["type"], "is not valid."))
