"""The default model, as it is converted and run, against another implementation's outputs in fp32."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest
from numpy.typing import NDArray

from runtime_server.backends.base import Chunk
from runtime_server.backends.cpu import CpuBackend
from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.graph import PREFILL_FILE
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
    device = CpuBackend(folder, model_manifest.config, slots=20, max_tokens=512, prefill_chunk=CHUNK, threads=2)
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


def decode(backend: CpuBackend, conversations: list[golden.Scored], first: list[int], result: Faithfulness) -> None:
    """Feeds every conversation from its ``first`` position on, one token per step, all at once."""
    longest = max(len(entry.token_ids) - start for entry, start in zip(conversations, first, strict=True))
    for step in range(longest):
        places = [(slot, entry, first[slot] + step) for slot, entry in enumerate(conversations)]
        running = [place for place in places if place[2] < len(place[1].token_ids)]
        chunks = [Chunk(slot, position, [entry.token_ids[position]], True) for slot, entry, position in running]
        for row, (_, entry, position) in zip(backend.run(chunks), running, strict=True):
            result.add(row, entry, position)


def test_decoding_stays_close_to_fp32(backend: CpuBackend) -> None:
    conversations, result = golden.scored(), Faithfulness()
    decode(backend, conversations, [0] * len(conversations), result)
    result.check("decoding", 2288)


def test_decoding_after_prefilling_stays_close_to_fp32(backend: CpuBackend) -> None:
    """As requests are served."""
    conversations, result = golden.scored(), Faithfulness()
    for slot, entry in enumerate(conversations):
        chunk = Chunk(slot, 0, entry.token_ids[: entry.prompt_length], True)
        result.add(backend.run([chunk])[0], entry, entry.prompt_length - 1)
    decode(backend, conversations, [entry.prompt_length for entry in conversations], result)
    result.check("decoding after prefilling", 1558)


def test_prefilling_stays_close_to_fp32(backend: CpuBackend, model_home: Path, model_manifest: Manifest) -> None:
    options = ort.SessionOptions()
    options.use_per_session_threads = False  # as the backend's sessions in this process
    path = model_folder(model_home) / PREFILL_FILE
    session = ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    result = Faithfulness()
    for entry in golden.scored():
        for position, row in enumerate(every_logit(session, model_manifest.config, entry.token_ids)):
            result.add(row, entry, position)
    result.check("prefilling", 2288)


def every_logit(session: ort.InferenceSession, config: DecoderConfig, token_ids: list[int]) -> NDArray[np.float32]:
    """Logits after every token of a prompt that is computed at once, ``[tokens, vocab_size]``."""
    length = len(token_ids)
    rows = np.arange(length)
    inputs = {
        "input_ids": np.array(token_ids),
        "query_rows": rows[None],
        "packed_rows": rows,
        "seqlens_k": np.array([length - 1], np.int32),
        "query_seqlens": np.array([length], np.int32),
        "total_sequence_length": np.array(length, np.int32),
        "logit_rows": rows,
    }
    empty = np.zeros((1, config.kv_heads, length, config.head_dim), np.float32)
    for layer in range(config.layers):
        inputs |= {f"past_key.{layer}": empty, f"past_value.{layer}": empty}
    result: NDArray[np.float32] = session.run(["logits"], inputs)[0]
    return result
