"""Pulls in a process of its own, for tests that kill it or run two: ``pull_child.py SOURCE HOME STEP``.

The builder prints ``building`` and then waits for a line on stdin.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

from runtime_server.models.decoder import DecoderConfig, Weights
from runtime_server.models.pull import pull


def build(
    config: DecoderConfig,
    weights: Weights,
    folder: Path,
    *,
    quantization: str,
    progress: Callable[[int, int], None],
) -> None:
    """Stands half-done until it is told to go on."""
    (folder / "weights.bin").write_bytes(b"half")
    print("building", flush=True)  # noqa: T201
    sys.stdin.readline()
    (folder / "model.onnx").write_bytes(b"onnx")


if __name__ == "__main__":
    pull(sys.argv[1], Path(sys.argv[2]), as_name="tiny", builder=build)
    print("done", flush=True)  # noqa: T201
