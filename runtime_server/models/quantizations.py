"""The names of weight formats. Imports nothing, so that a command line can offer them."""

from __future__ import annotations

STORED_BYTES = {"int8": 2.9, "int8-block": 1.6, "fp32": 4.1}
"""Bytes on disk per parameter, rounded up. What the formats are stands in :mod:`runtime_server.models.graph`."""

DEFAULT_QUANTIZATION = "int8"
