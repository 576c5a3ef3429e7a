"""The default model on a card against another implementation's outputs in fp32, fed in every way."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from runtime_server.backends.base import Chunk
from runtime_server.models.manifest import Manifest
from runtime_server.models.pull import pull
from runtime_server.models.store import ModelStore
from tests import golden
from tests.default_model import DEFAULT_MODEL
from tests.gpu.conftest import Runner, running
from tests.runtime_server.engine.running import collect, generation, running_engine, tokens_of

LIMITS = {"bf16": (0.02, 0.93), "int4": (0.5, 0.6)}
"""Mean divergence in nats, at most, and share of positions with the same likeliest token, at least."""
MARGIN = 0.5
"""Closer logits than this may change places by rounding."""


@pytest.fixture(scope="module", params=LIMITS)
def stored(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, Path, Manifest]:
    quantization: str = request.param
    home = tmp_path_factory.mktemp(quantization)
    manifest = pull(DEFAULT_MODEL, home, quantization=quantization)
    return quantization, ModelStore(home / "models").path(DEFAULT_MODEL), manifest


@pytest.fixture(scope="module", params=[True, False], ids=["captured", "eager"])
def runner(request: pytest.FixtureRequest, stored: tuple[str, Path, Manifest]) -> Iterator[Runner]:
    _, folder, manifest = stored
    with running(folder, manifest.config, captures=request.param) as found:
        yield found


def piece(sequence: int, start: int, token_ids: list[int], *, wanted: bool = True) -> Chunk:
    return Chunk([3 * sequence + number for number in range(3)], start, token_ids, wanted)


@pytest.mark.parametrize("batch", [1, 5, 20])
@pytest.mark.parametrize("chunk", [1, 33, 1000])
def test_logits_are_close_to_fp32(stored: tuple[str, Path, Manifest], runner: Runner, batch: int, chunk: int) -> None:
    """The prompt in chunks, then the answer token by token, ``batch`` conversations at once."""
    divergences, agreements = [], []
    conversations = golden.scored()[: 20 if batch > 1 else 3]
    for first in range(0, len(conversations), batch):
        group = conversations[first : first + batch]
        places = [0] * len(group)
        while any(place < len(entry.token_ids) for place, entry in zip(places, group, strict=True)):
            chunks, scored = [], []
            for number, entry in enumerate(group):
                start = places[number]
                end = min(start + chunk, entry.prompt_length) if start < entry.prompt_length else start + 1
                if start < len(entry.token_ids):
                    chunks.append(piece(number, start, entry.token_ids[start:end]))
                    scored.append((entry, end - 1))
                    places[number] = end
            for row, (entry, position) in zip(runner(chunks), scored, strict=True):
                divergences.append(golden.divergence(row, entry, position))
                agreements.append(row.argmax() == entry.top_ids[position, 0])
    quantization = stored[0]
    mean, agreement = float(np.mean(divergences)), float(np.mean(agreements))
    print(f"{quantization}, {batch} at once, chunks of {chunk}: mean KL {mean:.4f}, top-1 {agreement:.2%}")  # noqa: T201
    assert mean <= LIMITS[quantization][0]
    assert agreement >= LIMITS[quantization][1]


def test_greedy_answers_are_the_reference_where_it_is_certain(
    stored: tuple[str, Path, Manifest], runner: Runner
) -> None:
    """Through the engine: steps ahead, the prefix cache, twenty at once."""
    if stored[0] != "bf16":
        pytest.skip("four bits a weight change answers")

    async def answers() -> list[list[int]]:
        async with running_engine(backend=Lent(runner), max_batch=20, prefill_chunk=256) as (engine, _):
            asked = [(entry.prompt_ids, entry.certain(MARGIN)) for entry in golden.conversations()]
            table = [b"x"] * runner.backend.launch([Chunk([0], 0, [1], True)]).output().logits([0]).shape[1]
            found = await asyncio.gather(
                *(
                    collect(generation(engine, prompt, max(len(answer), 1), token_bytes=table))
                    for prompt, answer in asked
                )
            )
        return [tokens_of(events) for events in found]

    expected = [entry.certain(MARGIN) for entry in golden.conversations()]
    actual = asyncio.run(answers())
    wrong = [n for n, answer in enumerate(expected) if actual[n][: len(answer)] != answer]
    assert wrong == []


class Lent:
    """A backend that somebody else closes."""

    ahead = True

    def __init__(self, runner: Runner) -> None:
        backend = runner.backend
        self.device, self.blocks, self.block_tokens = backend.device, backend.blocks, backend.block_tokens
        self.kv_cache_bytes = backend.kv_cache_bytes
        self.launch = backend.launch

    def close(self) -> None:
        pass
