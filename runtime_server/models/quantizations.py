"""The names of weight formats. Imports nothing, so that a command line can offer them."""

from __future__ import annotations

CPU = ("int8", "fp32")
"""What the processor runs; :mod:`runtime_server.models.linear` says how they lie in memory."""
CUDA = ("bf16", "int4")
"""What a card runs; see :mod:`runtime_server.models.cuda_operators`."""
QUANTIZATIONS = (*CPU, *CUDA)
DEFAULT_QUANTIZATION = "int8"
DEFAULT_CUDA_QUANTIZATION = "bf16"
