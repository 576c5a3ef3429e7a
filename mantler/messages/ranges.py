"""Checks of numbers against the range that a field has."""

from __future__ import annotations

import math

from mantler.errors import invalid

MAX_TOKENS = 2**31 - 1
"""Any number of tokens that a request names is at most this."""


def check_float(name: str, value: float, low: float, high: float, *, open_low: bool = False) -> None:
    """Raises the 400 of field ``name`` unless ``value`` is finite and within bounds: above ``low`` if ``open_low``."""
    inside = math.isfinite(value) and (low < value if open_low else low <= value) and value <= high
    if not inside:
        bounds = f"above {low:g} and at most {high:g}" if open_low else f"between {low:g} and {high:g}"
        raise invalid(name, f"must be {bounds}, got {value:g}.")


def check_int(name: str, value: int, low: int, high: int) -> None:
    """Raises the 400 of field ``name`` unless ``value`` is within the bounds, both of which are allowed."""
    if not low <= value <= high:
        raise invalid(name, f"must be between {low} and {high}, got {value}.")
