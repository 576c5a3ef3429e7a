"""What goes wrong when a model is loaded, said to the user."""

from __future__ import annotations

import logging
from pathlib import Path

from onnxruntime.capi import onnxruntime_pybind11_state as state

from runtime_server.models.errors import PullError

logger = logging.getLogger(__name__)

HINT = "pull it again with --force"
UNREADABLE = (
    state.Fail,
    state.InvalidArgument,
    state.InvalidGraph,
    state.InvalidProtobuf,
    state.NoSuchFile,
    state.NotImplemented,
    state.RuntimeException,
)
"""What ONNX Runtime raises for a model that it cannot load or run."""


def unreadable(path: Path, error: Exception) -> PullError:
    """ONNX Runtime's words are for the log."""
    logger.error("ONNX Runtime cannot use %s: %s", path, error)
    return PullError("The stored model cannot be read.", hint=HINT)


def damaged() -> PullError:
    """It computes what is not a number."""
    return PullError("The stored model's weights are damaged.", hint=HINT)
