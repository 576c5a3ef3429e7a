from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime_server.backends.base import Chunk
from runtime_server.backends.cuda import CudaBackend, MakeCard
from runtime_server.backends.cuda_card import CudaCard
from runtime_server.backends.cuda_state import cuda_state
from runtime_server.models.decoder import DecoderConfig

BLOCKS, BATCH = 64, 20


@pytest.fixture(scope="session", autouse=True)
def card() -> None:
    """Skips everything where models cannot run on a card."""
    missing = cuda_state().missing
    if missing:
        pytest.skip(f"no card to run on: {'; '.join(f'{part.what} ({part.remedy})' for part in missing)}")


class Runner:
    """Feeds chunks to a backend and reads all logits."""

    def __init__(self, backend: CudaBackend) -> None:
        self.backend = backend

    def __call__(self, chunks: Sequence[Chunk]) -> NDArray[np.float32]:
        rows = sum(chunk.wants_logits for chunk in chunks)
        output = self.backend.launch(chunks).output()
        logits = output.logits(range(rows))
        # The likeliest tokens come another way, and must be the same.
        np.testing.assert_array_equal(output.candidates.values[:, 0], logits.max(axis=1))
        picked = np.take_along_axis(logits, output.candidates.ids, axis=1)
        np.testing.assert_array_equal(picked, output.candidates.values)
        mass = np.log(np.exp(logits.astype(np.float64)).sum(axis=1))
        np.testing.assert_allclose(output.candidates.logsumexp, mass, rtol=1e-3)
        return logits


@contextmanager
def running(
    folder: Path,
    config: DecoderConfig,
    *,
    captures: bool = True,
    step_tokens: int = 4096,
    make_card: MakeCard = CudaCard,
) -> Iterator[Runner]:
    """A model on the first card."""
    backend = CudaBackend(
        folder,
        config,
        device_id=0,
        blocks=BLOCKS,
        longest=min(config.context_length, 4096),
        max_batch=BATCH,
        step_tokens=step_tokens,
        captures=captures,
        make_card=make_card,
    )
    try:
        yield Runner(backend)
    finally:
        backend.close()


def divergence(expected: NDArray[np.float32], actual: NDArray[np.float32]) -> float:
    """Of two distributions given as logits ``[vocab_size]``, after Kullback and Leibler, in nats."""
    p, q = (
        x.astype(np.float64) - np.log(np.exp(x.astype(np.float64) - x.max()).sum()) - x.max()
        for x in (expected, actual)
    )
    return float((np.exp(p) * (p - q)).sum())
