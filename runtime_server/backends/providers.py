"""What the installed ONNX Runtime can run on."""

from __future__ import annotations

import contextlib
import ctypes
import io

import onnxruntime as ort

CUDA = "CUDAExecutionProvider"
CUDA_LIBRARIES = {
    "libcudart.so.13": "nvidia-cuda-runtime>=13,<14",
    "libcublasLt.so.13": "nvidia-cublas>=13,<14",
    "libcublas.so.13": "nvidia-cublas>=13,<14",
    "libcurand.so.10": "nvidia-curand>=10,<11",
    "libcudnn.so.9": "nvidia-cudnn-cu13>=9,<10",
}
"""What the provider links against or loads, and what pip installs to bring it where the system does not."""


def installed() -> tuple[str, tuple[str, ...]]:
    """Its version, and its execution providers, for example ``("CPUExecutionProvider",)``."""
    return str(ort.__version__), tuple(ort.get_available_providers())


def load_cuda_libraries() -> list[str]:
    """Loads CUDA and cuDNN, from NVIDIA's packages or the system, for the provider to find.

    Returns those of :data:`CUDA_LIBRARIES` that cannot be loaded.
    """
    # It prints what it does not find. Which of that matters is asked below.
    with contextlib.redirect_stdout(io.StringIO()):
        ort.preload_dlls()
    return [name for name in CUDA_LIBRARIES if not _loads(name)]


def _loads(library: str) -> bool:
    try:
        ctypes.CDLL(library)
    except OSError:
        return False
    return True
