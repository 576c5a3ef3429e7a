"""The default model, as it is converted and run, against another implementation's outputs in fp32."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime_server.backends.base import Chunk
from runtime_server.backends.cpu import CpuBackend
from runtime_server.engine.logprobs import rank
from runtime_server.models.manifest import Manifest
from tests import golden
from tests.conftest import model_folder

pytestmark = pytest.mark.model

SEQUENCES, BLOCKS = 20, 16
"""Of the cache: so many sequences of so many blocks."""
MARGIN = 0.5
"""Closer logits than this may change places by rounding."""


@pytest.fixture(scope="module")
def backend(model_home: Path, model_manifest: Manifest) -> Iterator[CpuBackend]:
    folder = model_folder(model_home)
    device = CpuBackend(folder, model_manifest.config, blocks=SEQUENCES * BLOCKS, max_batch=SEQUENCES, threads=2)
    yield device
    device.close()


def piece(sequence: int, start: int, token_ids: list[int]) -> Chunk:
    return Chunk(range(sequence * BLOCKS, (sequence + 1) * BLOCKS), start, token_ids, True)


def greedy_answer(backend: CpuBackend, sequence: int, prompt_ids: list[int], length: int) -> list[int]:
    logits = backend.run([piece(sequence, 0, prompt_ids)])
    answer: list[int] = []
    for place in range(len(prompt_ids), len(prompt_ids) + length):
        answer.append(int(logits[0].argmax()))
        logits = backend.run([piece(sequence, place, answer[-1:])])
    return answer


def test_greedy_answers_are_the_reference_where_it_is_certain(backend: CpuBackend) -> None:
    wrong = []
    for number, entry in enumerate(golden.conversations()):
        expected = entry.certain(MARGIN)
        if greedy_answer(backend, number % SEQUENCES, entry.prompt_ids, len(expected)) != expected:
            wrong.append(number)
    assert wrong == []


class Faithfulness:
    """Compares logits with the reference, and holds their averages to the limits of every way through the model."""

    def __init__(self) -> None:
        self._divergences: list[float] = []
        self._agreements: list[bool] = []

    def add(self, logits: NDArray[np.float32], reference: golden.Scored, position: int) -> None:
        self._divergences.append(golden.divergence(logits, reference, position))
        self._agreements.append(bool(logits.argmax() == reference.top_ids[position, 0]))

    def check(self, what: str, positions: int) -> None:
        assert len(self._divergences) == positions
        mean, agreement = np.mean(self._divergences), np.mean(self._agreements)
        print(f"{what}: mean KL {mean:.4f}, top-1 agreement {agreement:.2%}")  # noqa: T201 - shown with -s
        assert mean <= 0.02
        assert agreement >= 0.93


def test_the_model_stays_close_to_fp32(backend: CpuBackend) -> None:
    """Every conversation is fed token by token, all of them at once. Prompts have the same bits; see the next test."""
    conversations, result = golden.scored(), Faithfulness()
    for position in range(max(len(entry.token_ids) for entry in conversations)):
        running = [(n, entry) for n, entry in enumerate(conversations) if position < len(entry.token_ids)]
        chunks = [piece(number, position, [entry.token_ids[position]]) for number, entry in running]
        for row, (_, entry) in zip(backend.run(chunks), running, strict=True):
            result.add(row, entry, position)
    result.check("all positions", 2288)


def test_log_probabilities_are_close_to_those_of_fp32(backend: CpuBackend) -> None:
    """Of the tokens that were said, where the reference lists them, and of the likeliest ones."""
    chosen: list[float] = []
    top: list[float] = []
    for number, entry in enumerate(golden.scored()):
        backend.run([piece(number, 0, entry.token_ids[: entry.prompt_length - 1])])
        for position in range(entry.prompt_length - 1, len(entry.token_ids) - 1):
            logits = backend.run([piece(number, position, [entry.token_ids[position]])])[0]
            following = entry.token_ids[position + 1]
            ranking = rank(logits, following, 5)
            expected = dict(zip(entry.top_ids[position].tolist(), entry.top_logprobs[position].tolist(), strict=True))
            if following in expected:
                chosen.append(abs(ranking.chosen - expected[following]))
            listed = [i for i in range(5) if ranking.top_ids[i] in expected]
            top += [abs(ranking.top[i] - expected[ranking.top_ids[i]]) for i in listed]
    print(f"chosen {np.mean(chosen):.4f} of {len(chosen)}, top {np.mean(top):.4f} of {len(top)}")  # noqa: T201 - with -s
    assert len(chosen) >= 900
    assert len(top) >= 4500
    assert np.mean(chosen) <= 0.08
    assert np.mean(top) <= 0.13


def test_a_prompt_has_the_bits_of_single_tokens(backend: CpuBackend) -> None:
    """However it is cut, and whatever runs beside it."""
    token_ids = max((entry.token_ids for entry in golden.scored()), key=len)
    for position, token_id in enumerate(token_ids):
        expected = backend.run([piece(0, position, [token_id])]).copy()
    whole = backend.run([piece(1, 0, token_ids)]).copy()
    backend.run([piece(2, 0, token_ids[:33])])
    beside = [piece(3, 0, token_ids[:50]), piece(2, 33, token_ids[33:]), piece(4, 0, token_ids[:1])]
    in_two = backend.run(beside)[1:2]
    np.testing.assert_array_equal(whole, expected)
    np.testing.assert_array_equal(in_two, expected)
