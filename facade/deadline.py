"""The deadline that a client sets in the header ``Grpc-Timeout``, as gRPC itself writes it. Pure.

One to eight digits and a unit: https://github.com/grpc/grpc/blob/master/doc/PROTOCOL-HTTP2.md
"""

from __future__ import annotations

import re

from mantler.errors import invalid

HEADER = "Grpc-Timeout"

_SHAPE = re.compile(r"([0-9]{1,8})([HMSmun])")
_SECONDS = {"H": 3600.0, "M": 60.0, "S": 1.0, "m": 1e-3, "u": 1e-6, "n": 1e-9}


def timeout_s(header: str | None) -> float | None:
    """Seconds that the client gives its request; ``None`` where it says nothing. Raises INVALID_PARAMETER."""
    if header is None:
        return None
    shape = _SHAPE.fullmatch(header.strip())
    if shape is None or not int(shape[1]):
        raise invalid(HEADER, "must be 1 to 8 digits above zero and a unit of H, M, S, m, u or n, for example 30S.")
    return int(shape[1]) * _SECONDS[shape[2]]
