"""The CUDA backend with everything but the card: plans, graph and engine, computed in numpy."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from numpy.typing import NDArray
from onnxruntime.capi import onnxruntime_pybind11_state as state

from runtime_server.backends.base import Chunk
from runtime_server.backends.cuda import CudaBackend
from runtime_server.backends.cuda_runtime import CudaError
from runtime_server.models import cuda_operators, graph, rope
from runtime_server.models.cuda_operators import four_bits
from runtime_server.models.decoder import DecoderConfig, Weights
from runtime_server.models.errors import PullError
from runtime_server.models.manifest import MODEL_FILE
from tests import reference_decoder
from tests.cuda_reference.card import NumpyCard
from tests.reference_decoder import RandomWeights
from tests.runtime_server.engine.running import collect, generation, running_engine, tokens_of
from tests.tiny_models import tiny_config

BLOCKS, BATCH, STEP_TOKENS = 16, 4, 600
SHORT = 256
"""Tokens of a block: heads are small here."""
KINDS: dict[str, dict[str, Any]] = {
    "llama": {},
    "tied": {"tied_embeddings": True},
    "window": {"architecture": "mistral", "sliding_window": 40},
    "qwen2": {"architecture": "qwen2", "qkv_bias": True},
    "qwen3": {"architecture": "qwen3", "qk_norm": True, "tied_embeddings": True},
    "alone": {"kv_heads": 4},
    "scaled": {"rope_attention_scale": 1.2},
}


def shape(**changes: Any) -> DecoderConfig:
    """A tiny decoder whose contexts fill several blocks."""
    frequencies = tuple(rope.inverse_frequencies(16, 10_000.0).tolist())
    return replace(tiny_config("llama"), context_length=2048, rope_inv_freq=frequencies, **changes)


@pytest.fixture
def exact(monkeypatch: pytest.MonkeyPatch) -> None:
    """Graphs in fp32, so that a wrong place is no rounding error."""
    monkeypatch.setattr(cuda_operators, "BF16", np.dtype(np.float32))


class Rounded:
    """Weights as the stored model has them."""

    def __init__(self, weights: Weights, *, int4: bool = False) -> None:
        self._weights = weights
        self._int4 = int4

    def load(self, name: str) -> NDArray[np.float32]:
        weight = self._weights.load(name)
        if self._int4 and weight.ndim == 2 and name not in ("embed", "lm_head"):
            packed, scales = four_bits(weight)
            values = np.stack([packed & 15, packed >> 4], axis=-1).reshape(*scales.shape, -1).astype(np.float32) - 8
            return (values * scales.astype(np.float32)[..., None]).reshape(weight.shape)
        return weight.astype(cuda_operators.BF16).astype(np.float32)


@contextmanager
def loaded(
    config: DecoderConfig, folder: Path, *, quantization: str = "bf16", captures: bool = True, longest: int = 2048
) -> Iterator[tuple[CudaBackend, NumpyCard]]:
    graph.build(config, RandomWeights(config), folder, quantization=quantization)
    cards: list[NumpyCard] = []

    def make(*arguments: object) -> NumpyCard:
        cards.append(NumpyCard(*arguments))  # type: ignore[arg-type]
        return cards[0]

    backend = CudaBackend(
        folder,
        config,
        device_id=0,
        blocks=BLOCKS,
        longest=longest,
        max_batch=BATCH,
        step_tokens=STEP_TOKENS,
        captures=captures,
        make_card=make,
    )
    try:
        yield backend, cards[0]
    finally:
        backend.close()
        assert cards[0].closed


def prompt(length: int, seed: int = 0) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(0, tiny_config("llama").vocab_size, length).tolist()
    return tokens


def last_logits(config: DecoderConfig, tokens: Sequence[int], weights: Weights | None = None) -> NDArray[np.float64]:
    last: NDArray[np.float64] = reference_decoder.logits(config, weights or Rounded(RandomWeights(config)), tokens)[-1]
    return last


def compare(actual: NDArray[np.float32], expected: NDArray[np.float64], tolerance: float = 1e-4) -> None:
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance * np.abs(expected).max())


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.usefixtures("exact")
def test_prompts_and_decodes_of_many_kinds_together(kind: str, tmp_path: Path) -> None:
    """A prompt at once, one in chunks that end anywhere in a block, and decodes, in one batch, in shuffled blocks."""
    config = shape(**KINDS[kind])
    first, second = prompt(SHORT + 70, 1), prompt(2 * SHORT + 3, 2)
    table = {1: [7, 3], 2: [5, 0, 11]}
    with loaded(config, tmp_path) as (backend, _):
        backend.launch([Chunk(table[1], 0, first[:-1], False), Chunk(table[2], 0, second[:100], False)]).output()
        steps = [Chunk(table[1], len(first) - 1, first[-1:], True), Chunk(table[2], 100, second[100:508], True)]
        output = backend.launch(steps).output()
        logits = output.logits([0, 1])
        compare(logits[0], last_logits(config, first))
        compare(logits[1], last_logits(config, second[:508]))
        assert output.candidates is not None
        assert output.candidates.ids[:, 0].tolist() == logits.argmax(axis=1).tolist()
        mass = np.log(np.exp(logits.astype(np.float64)).sum(axis=1))
        np.testing.assert_allclose(output.candidates.logsumexp, mass, rtol=1e-5)
        taken = np.take_along_axis(logits, output.candidates.ids, axis=1)
        np.testing.assert_array_equal(output.candidates.values, taken)
        # One after the other, each in a captured graph.
        for place in range(508, len(second)):
            last = backend.launch([Chunk(table[2], place, [second[place]], True)]).output()
        compare(last.logits([0])[0], last_logits(config, second))


@pytest.mark.usefixtures("exact")
def test_a_prefix_that_two_share_is_read_and_not_written(tmp_path: Path) -> None:
    config = shape()
    shared, own = prompt(SHORT, 1), [prompt(9, seed) for seed in (2, 3)]
    with loaded(config, tmp_path) as (backend, card):
        backend.launch([Chunk([4], 0, shared, False)]).output()
        before = {name: cache[4].copy() for name, cache in card.caches.items()}
        chunks = [Chunk([4, 1], SHORT, own[0], True), Chunk([4, 9], SHORT, own[1], True)]
        logits = backend.launch(chunks).output().logits([0, 1])
        for row, tail in zip(logits, own, strict=True):
            compare(row, last_logits(config, [*shared, *tail]))
        for name, cache in card.caches.items():
            np.testing.assert_array_equal(cache[4], before[name])


@pytest.mark.usefixtures("exact")
def test_whole_numbers_of_four_bits(tmp_path: Path) -> None:
    config = shape()
    tokens = prompt(40)
    with loaded(config, tmp_path, quantization="int4") as (backend, card):
        used = {node.op_type for node in card.nodes}
        logits = backend.launch([Chunk([0], 0, tokens, True)]).output().logits([0])
    assert "MatMulNBits" in used
    compare(logits[0], last_logits(config, tokens, Rounded(RandomWeights(config), int4=True)))


def test_bf16_is_close(tmp_path: Path) -> None:
    config = shape()
    tokens = prompt(SHORT + 40)
    with loaded(config, tmp_path) as (backend, card):
        assert {cache.dtype for cache in card.caches.values()} == {np.dtype(ml_dtypes.bfloat16)}
        actual = backend.launch([Chunk([3, 2], 0, tokens, True)]).output().logits([0])[0].astype(np.float64)
    expected = last_logits(config, tokens)
    # The divergence of the two distributions (Kullback and Leibler), in nats.
    p, q = (values - np.log(np.exp(values).sum()) for values in (expected, actual))
    assert (np.exp(p) * (p - q)).sum() < 0.01


@pytest.mark.usefixtures("exact")
def test_an_engine_gives_the_tokens_of_the_definition(tmp_path: Path) -> None:
    """Scheduler, prefix cache, steps ahead, captured and eager ones: greedy answers as the reference has them."""
    config = shape(tied_embeddings=True)
    weights = Rounded(RandomWeights(config))
    common = prompt(SHORT + 5, 1)
    prompts = [common, [*common, 3, 4], prompt(7, 2), prompt(30, 3), [*common, 8]]

    def greedy(tokens: list[int], count: int) -> list[int]:
        answer: list[int] = []
        for _ in range(count):
            answer.append(int(last_logits(config, [*tokens, *answer], weights).argmax()))
        return answer

    async def answers(captures: bool, folder: Path) -> tuple[list[list[int]], NumpyCard]:
        with loaded(config, folder, captures=captures) as (backend, card):
            async with running_engine(backend=Kept(backend), prefill_chunk=SHORT) as (engine, _):
                first = tokens_of(await collect(generation(engine, prompts[0], 4)))
                rest = await asyncio.gather(*(collect(generation(engine, tokens, 6)) for tokens in prompts[1:]))
                cached = engine.profile().cached_prompt_tokens
            assert cached >= SHORT
        return [first, *(tokens_of(events) for events in rest)], card

    expected = [greedy(prompts[0], 4), *(greedy(tokens, 6) for tokens in prompts[1:])]
    captured, card = asyncio.run(answers(True, made(tmp_path / "captured")))
    eager, other = asyncio.run(answers(False, made(tmp_path / "eager")))
    assert captured == eager == expected
    assert any(plan.capture for plan in card.plans)
    assert not any(plan.capture for plan in other.plans)
    places = [plan.input("token_places") for plan in card.plans]
    assert any((place < BATCH).any() for place in places), "no step went ahead"


def made(folder: Path) -> Path:
    folder.mkdir()
    return folder


class Kept:
    """A backend that somebody else closes."""

    ahead = True

    def __init__(self, backend: CudaBackend) -> None:
        self._backend = backend
        self.device, self.blocks, self.block_tokens = backend.device, backend.blocks, backend.block_tokens
        self.kv_cache_bytes = backend.kv_cache_bytes
        self.launch = backend.launch

    def close(self) -> None:
        pass


def test_the_largest_steps_are_tried_at_load(tmp_path: Path) -> None:
    """Memory that they need is there, then, or the model is not loaded."""
    with loaded(shape(), tmp_path) as (_, card):
        prompts, decodes = card.plans
        assert prompts.shape.tokens == STEP_TOKENS
        assert decodes.shape.rows == BATCH
    config = replace(shape(), context_length=SHORT)
    with loaded(config, tmp_path, longest=SHORT) as (_, card):
        assert np.diff(card.plans[0].input("row_starts")).tolist() == [256, 256, 88]


def test_logits_are_gone_after_the_next_launch(tmp_path: Path) -> None:
    with loaded(shape(), tmp_path) as (backend, _):
        flight = backend.launch([Chunk([0], 0, [1, 2], True)])
        following = backend.launch([Chunk([0], 2, (), True, follows=0)])
        output = flight.output()
        with pytest.raises(RuntimeError, match="are gone"):
            output.logits([0])
        assert following.output().logits([0]).shape == (1, shape().vocab_size)


def test_a_damaged_model_is_refused_at_load(tmp_path: Path) -> None:
    config = shape()
    graph.build(config, RandomWeights(config), tmp_path, quantization="bf16")
    weights = (tmp_path / MODEL_FILE).with_suffix(".bin")
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    with pytest.raises(PullError, match="damaged"):
        CudaBackend(
            tmp_path, config, device_id=0, blocks=2, longest=512, max_batch=1, step_tokens=8, make_card=NumpyCard
        )


@pytest.mark.parametrize(
    ("said", "kind", "told"),
    [
        ("[FAIL] CUDNN failure 1001: CUDNN_STATUS_NOT_INITIALIZED ; GPU=0 ; hostname=x ;", CudaError, "CUDNN failed"),
        (
            "[RUNTIME_EXCEPTION] BFCArena: Failed to allocate memory for requested buffer of size 9",
            MemoryError,
            "size 9",
        ),
        ("[INVALID_GRAPH] no such operator", PullError, "cannot be read"),
    ],
)
def test_what_onnx_runtime_says_of_a_fault(said: str, kind: type[Exception], told: str, tmp_path: Path) -> None:
    def fail(*arguments: object) -> NumpyCard:
        raise state.Fail(said)

    sizes = {"device_id": 0, "blocks": 2, "longest": 512, "max_batch": 1, "step_tokens": 8}
    with pytest.raises(kind, match=told):
        CudaBackend(tmp_path, shape(), make_card=fail, **sizes)  # type: ignore[arg-type]


def test_a_fault_of_the_card_reaches_whoever_waits(tmp_path: Path) -> None:
    with loaded(shape(), tmp_path) as (backend, card):

        def fail(plan: object) -> None:
            raise RuntimeError("the card is gone")

        card.run = fail  # type: ignore[method-assign,assignment]
        flight = backend.launch([Chunk([0], 0, [1], True)])
        with pytest.raises(RuntimeError, match="the card is gone"):
            flight.output()
