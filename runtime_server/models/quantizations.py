"""The names of weight formats. Imports nothing, so that a command line can offer them."""

from __future__ import annotations

STORED_BYTES = {"int8": 1.1, "fp32": 4.1}
"""Bytes on disk per parameter, at most. What the formats are stands in :mod:`runtime_server.models.linear`."""

DEFAULT_QUANTIZATION = "int8"
