"""Decoders of many shapes with random weights: the card against the same graph in numpy."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from runtime_server.backends.base import Chunk
from runtime_server.models import graph, rope
from runtime_server.models.cuda_format import block_tokens
from runtime_server.models.decoder import DecoderConfig
from tests.cuda_reference.card import NumpyCard
from tests.gpu.conftest import Runner, divergence, running
from tests.reference_decoder import RandomWeights
from tests.tiny_models import tiny_config

STEP_TOKENS = 600
SHAPES: dict[str, dict[str, Any]] = {
    "heads of 64": {"head_dim": 64, "heads": 6, "kv_heads": 2},
    "heads of 128": {"head_dim": 128, "heads": 8, "kv_heads": 2},
    "one key head": {"head_dim": 128, "heads": 4, "kv_heads": 1},
    "heads of their own": {"head_dim": 64, "heads": 4, "kv_heads": 4},
    "qwen2": {"architecture": "qwen2", "head_dim": 64, "heads": 4, "kv_heads": 2, "qkv_bias": True},
    "qwen3": {"architecture": "qwen3", "head_dim": 128, "heads": 4, "kv_heads": 2, "qk_norm": True},
    "window": {"architecture": "mistral", "head_dim": 128, "heads": 4, "kv_heads": 2, "sliding_window": 100},
    "tied": {"head_dim": 64, "heads": 4, "kv_heads": 2, "tied_embeddings": True},
}


def shape(changes: dict[str, Any]) -> DecoderConfig:
    frequencies = tuple(rope.inverse_frequencies(changes["head_dim"], 10_000.0).tolist())
    config = replace(tiny_config("llama"), hidden=256, intermediate=512, context_length=2048)
    return replace(config, rope_inv_freq=frequencies, **changes)


def steps(config: DecoderConfig) -> list[list[Chunk]]:
    """Prompts at once and in chunks, beside decodes, over several blocks in any order, and a prefix that two share."""
    random = np.random.default_rng(5)
    size = block_tokens(config.head_dim)

    def tokens(count: int) -> list[int]:
        drawn: list[int] = random.integers(0, config.vocab_size, count).tolist()
        return drawn

    first, second, shared = [9, 2, 30], [7, 40, 1, 12], [5]
    found = [
        [Chunk(first, 0, tokens(size + 3), True)],
        [Chunk(first, size + 3, tokens(1), True), Chunk(second, 0, tokens(50), False)],
        [Chunk(first, size + 4, tokens(1), True), Chunk(second, 50, tokens(size + 100), True)],
        [Chunk(shared, 0, tokens(size), True)],
        [Chunk([5, 20], size, tokens(3), True), Chunk([5, 21], size, tokens(1), True)],
    ]
    for place in range(3):
        # From 513 tokens on, another captured graph serves.
        decodes = [Chunk(first, size + 5 + place, tokens(1), True), Chunk([5, 20], size + 3 + place, tokens(1), True)]
        found.append([*decodes, Chunk([5, 21], size + 1 + place, tokens(1), True)])
    found += [[Chunk([33, 34, 35, 36, 37], 0, tokens(511), False)]]
    found += [[Chunk([33, 34, 35, 36, 37], 511 + place, tokens(1), True)] for place in range(4)]
    return found


@pytest.mark.parametrize("quantization", ["bf16", "int4"])
@pytest.mark.parametrize("captures", [True, False], ids=["captured", "eager"])
@pytest.mark.parametrize("name", SHAPES)
def test_a_card_computes_what_numpy_does(name: str, captures: bool, quantization: str, tmp_path: Path) -> None:
    config = shape(SHAPES[name])
    graph.build(config, RandomWeights(config), tmp_path, quantization=quantization)
    with (
        running(tmp_path, config, captures=captures, step_tokens=STEP_TOKENS) as card,
        running(tmp_path, config, step_tokens=STEP_TOKENS, make_card=NumpyCard) as numpy,
    ):
        for number, chunks in enumerate(steps(config)):
            wanted = any(chunk.wants_logits for chunk in chunks)
            actual, expected = (run(chunks) if wanted else _run(run, chunks) for run in (card, numpy))
            for row, other in zip(actual, expected, strict=True):
                assert divergence(other, row) < 0.02, f"step {number}"
                best, second = np.sort(other)[::-1][:2]
                if best - second > 0.1 * np.abs(other).max():
                    assert row.argmax() == other.argmax(), f"step {number}"


def _run(run: Runner, chunks: list[Chunk]) -> list[np.ndarray[Any, np.dtype[np.float32]]]:
    run.backend.launch(chunks).output()
    return []
