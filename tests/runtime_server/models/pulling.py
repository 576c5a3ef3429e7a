"""What tests of pulling share."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from runtime_server.models.decoder import DecoderConfig, Weights
from tests.tiny_models import tiny_config

LLAMA = tiny_config("llama")


class FakeBuilder:
    """Writes two files, or fails with ``error`` after the first."""

    def __init__(self, error: BaseException | None = None) -> None:
        self.error = error
        self.calls = 0

    def __call__(
        self,
        config: DecoderConfig,
        weights: Weights,
        folder: Path,
        *,
        quantization: str,
        progress: Callable[[int, int], None],
    ) -> None:
        self.calls += 1
        (folder / "weights.bin").write_bytes(b"weights")
        progress(1, 2)
        if self.error is not None:
            raise self.error
        (folder / "model.onnx").write_bytes(b"onnx")
        progress(2, 2)


def leftovers(home: Path) -> list[str]:
    """Everything in the store and the cache but locks."""
    found = [path.relative_to(home).as_posix() for path in home.rglob("*") if path.is_file()]
    return sorted(path for path in found if not path.endswith(".lock"))
