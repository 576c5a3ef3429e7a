"""The default model, as it is converted and run, against another implementation's outputs in fp32."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime_server.backends.base import Chunk
from runtime_server.backends.cpu import CpuBackend
from runtime_server.models.manifest import Manifest
from tests import golden
from tests.conftest import model_folder

pytestmark = pytest.mark.model

CHUNK = 128
MARGIN = 0.5
"""Closer logits than this may change places by rounding."""


@pytest.fixture(scope="module")
def backend(model_home: Path, model_manifest: Manifest) -> Iterator[CpuBackend]:
    folder = model_folder(model_home)
    device = CpuBackend(folder, model_manifest.config, slots=20, max_tokens=512, prefill_chunk=CHUNK, threads=0)
    yield device
    device.close()


def greedy_answer(backend: CpuBackend, slot: int, prompt_ids: list[int], length: int) -> list[int]:
    for start in range(0, len(prompt_ids), CHUNK):
        part = prompt_ids[start : start + CHUNK]
        logits = backend.run([Chunk(slot, start, part, True)])
    answer: list[int] = []
    for place in range(len(prompt_ids), len(prompt_ids) + length):
        answer.append(int(logits[0].argmax()))
        logits = backend.run([Chunk(slot, place, answer[-1:], True)])
    return answer


def test_greedy_answers_are_the_reference_where_it_is_certain(backend: CpuBackend) -> None:
    wrong = []
    for number, entry in enumerate(golden.conversations()):
        expected = entry.certain(MARGIN)
        if greedy_answer(backend, number % backend.slots, entry.prompt_ids, len(expected)) != expected:
            wrong.append(number)
    assert wrong == []


def test_the_distribution_stays_close_to_fp32(backend: CpuBackend) -> None:
    conversations = golden.scored()
    divergences, agreements = [], []
    for position in range(max(len(entry.token_ids) for entry in conversations)):
        running = [(slot, entry) for slot, entry in enumerate(conversations) if position < len(entry.token_ids)]
        logits = backend.run([Chunk(slot, position, [entry.token_ids[position]], True) for slot, entry in running])
        for row, (_, entry) in zip(logits, running, strict=True):
            divergences.append(golden.divergence(row, entry, position))
            agreements.append(row.argmax() == entry.top_ids[position, 0])
    assert len(divergences) == 2288
    print(f"mean KL {np.mean(divergences):.4f}, top-1 agreement {np.mean(agreements):.2%}")  # noqa: T201 - shown with -s
    assert np.mean(divergences) <= 0.03
    assert np.mean(agreements) >= 0.92
