"""Types of options that are no settings. Their errors read like those of settings."""

from __future__ import annotations

from typing import Any, NoReturn

import click
from click.core import ParameterSource

from mantler.cli.errors import BadUsage


class Number(click.ParamType[float]):
    """A number of ``kind`` from ``low`` to ``high``, or above ``low`` if that is ``open_low``."""

    name = "number"

    def __init__(self, kind: type[int] | type[float], low: int, high: int, *, open_low: bool = False) -> None:
        self._kind = kind
        self._low = low
        self._high = high
        self._open_low = open_low

    @property
    def range(self) -> str:
        """The range in words."""
        return f"above {self._low}, at most {self._high}" if self._open_low else f"from {self._low} to {self._high}"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """The number, of its kind. Raises :class:`BadUsage`."""
        number: float | None
        try:
            number = self._kind(value)
        except ValueError:
            number = None
        if number is None or not self._low <= number <= self._high or (self._open_low and number == self._low):
            kind = "a whole number" if self._kind is int else "a number"
            _refuse(f"{kind} {self.range}", value, param, ctx)
        return number


class OneOf(click.Choice[str]):
    """One of a few words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        """The word. Raises :class:`BadUsage`."""
        if value not in self.choices:
            _refuse(f"one of {', '.join(self.choices)}", value, param, ctx)
        return str(value)


def _refuse(wanted: str, value: object, param: click.Parameter | None, ctx: click.Context | None) -> NoReturn:
    origin, hint = "the value", None
    if param is not None and ctx is not None:
        from_variable = ctx.get_parameter_source(param.name or "") is ParameterSource.ENVIRONMENT
        origin = str(param.envvar) if from_variable else param.opts[0]
        hint = f"{ctx.command_path} --help shows what it takes"
    raise BadUsage(f"{origin}: must be {wanted}, got {value!r}", hint=hint)
