"""What the installed ONNX Runtime can run on."""

from __future__ import annotations

import onnxruntime as ort


def installed() -> tuple[str, tuple[str, ...]]:
    """Its version, and its execution providers, for example ``("CPUExecutionProvider",)``."""
    return str(ort.__version__), tuple(ort.get_available_providers())
