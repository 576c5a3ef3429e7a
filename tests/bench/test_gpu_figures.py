"""The arithmetic of the benchmark on a card."""

from __future__ import annotations

import math

import pytest

from bench.gpu.figures import LONG, UnmeasuredError, decode_figures, mixed_figures
from bench.gpu.limit import Traffic, bf16_traffic, stored_traffic
from bench.gpu.load import Load, prompts
from bench.gpu.shapes import SHAPES, tensors
from bench.stream import Stream
from runtime_server.models.shapes import weight_shapes
from tests.tiny_models import tiny_config

PARAMETERS = {"llama-3.1-8b": 8_030_261_248, "smollm2-135m": 134_515_008}
"""As their makers count them."""


def steady(first: float, step: float, tokens: int, label: str = "", started: float = 0.0) -> Stream:
    return Stream(started, label, [first + step * n for n in range(tokens)])


def test_streams_that_decode_together() -> None:
    # The tokens of a step come a microsecond apart.
    streams = [steady(1.0 + 1e-6 * number, 0.010, 21) for number in range(4)]
    found = decode_figures(streams, prompt_tokens=100, host_ms=0.5)
    # Of 20 steps, but for those that are the first or last of some streams only.
    assert (found.batch, found.steps, found.host_ms) == (4, 18, 0.5)
    assert found.step_ms == pytest.approx(10)
    assert found.tokens_per_s == pytest.approx(400)
    assert 110 <= found.context <= 111


def test_only_the_time_in_which_all_decode_counts() -> None:
    early, late = steady(0.0, 0.001, 1000), steady(0.5, 0.020, 11)
    found = decode_figures([early, late], prompt_tokens=0)
    # Of the early stream the tokens 500 to 700, of the late one its own.
    assert found.steps == 10
    assert found.tokens_per_s == pytest.approx(1000 + 50)
    assert found.context == pytest.approx((sum(range(501, 701)) + sum(range(1, 11))) / 210, abs=1)


@pytest.mark.parametrize(
    ("streams", "why"),
    [
        ([steady(0, 1, 9), steady(20, 1, 9)], "only 0 steps"),
        ([steady(0, 1, 3)], "only 2 steps"),
        ([steady(0, 1, 9), Stream(0, error="it broke")], "it broke"),
        ([Stream(0)], "no token"),
    ],
)
def test_streams_that_cannot_be_measured(streams: list[Stream], why: str) -> None:
    with pytest.raises(UnmeasuredError, match=why):
        decode_figures(streams, 1)


def test_a_mixed_load() -> None:
    slow = Stream(0, "", [0.1, 0.2, 0.3, 0.7, 0.8, 0.9, 1.0])
    long = [Stream(0.25, LONG, [0.7, 0.75]), Stream(0.75, LONG, [0.9, 0.95])]
    found = mixed_figures([slow, *long], 1000)
    assert (found.streams, found.long_prompts, found.long_tokens) == (1, 2, 1000)
    assert found.ttft_p50_ms == pytest.approx(300)
    assert found.ttft_most_ms == pytest.approx(450)
    # Gaps that end between 0.25 and 0.9.
    assert found.itl_p50_ms == pytest.approx(100)
    assert 390 < found.itl_p99_ms < 400.1


@pytest.mark.parametrize("tokens", [[0.1, 0.2, 0.3], [0.3, 0.5, 2.0]])
def test_streams_that_did_not_decode_all_the_while(tokens: list[float]) -> None:
    with pytest.raises(UnmeasuredError, match="not all streams"):
        mixed_figures([Stream(0, "", tokens), Stream(0.25, LONG, [0.7])], 10)
    with pytest.raises(UnmeasuredError, match="no long prompt"):
        mixed_figures([Stream(0, "", tokens)], 10)


def test_the_share_of_the_limit() -> None:
    traffic = Traffic(weight_bytes=15_000_000_000, kv_bytes_per_token=131_072)
    assert traffic.step_bytes(1, 0) == 15e9
    assert traffic.step_bytes(128, 1024) == 15e9 + 128 * 1024 * 131_072
    # 15 GB at 3 TB/s take 5 ms.
    assert traffic.limit_share(1, 0, step_s=0.010, bytes_per_s=3e12) == pytest.approx(0.5)


def test_an_embedding_is_read_where_it_is_the_head_too() -> None:
    config, tied = tiny_config("llama"), tiny_config("llama", tied=True)
    embedding = config.vocab_size * config.hidden
    every = sum(math.prod(shape) for shape in weight_shapes(config).values())
    assert bf16_traffic(config).weight_bytes == 2 * (every - embedding)
    assert bf16_traffic(tied).weight_bytes == bf16_traffic(config).weight_bytes
    assert bf16_traffic(config).kv_bytes_per_token == 2 * 2 * 2 * 16 * 2
    rotations = config.context_length * config.head_dim
    assert stored_traffic(config, "bf16", 2 * (every + rotations), 1) == Traffic(2 * (every - embedding), 1)
    assert stored_traffic(tied, "int8", 1000 + 4 * rotations, 1) == Traffic(1000, 1)


@pytest.mark.parametrize("shape", PARAMETERS)
def test_shapes_have_the_size_that_their_makers_say(shape: str) -> None:
    assert sum(math.prod(size) for size in tensors(SHAPES[shape]).values()) == PARAMETERS[shape]


def test_loads() -> None:
    load = Load(kinds=("decode",), batches=(1, 4), context=100, new_tokens=10)
    assert (load.most_streams, load.longest) == (4, 111)
    assert Load.from_json(load.to_json()) == load
    mixed = Load(kinds=("mixed",), batches=(100,), context=50, streams=3, long_tokens=1000, long_prompts=1)
    assert mixed.most_streams == 4
    # 8 pieces and 16 tokens for each of two prompts, twice.
    assert (mixed.patience, mixed.longest) == (96, 1016)
    assert Load(kinds=()).most_streams == 0


def test_prompts_begin_differently_and_come_again() -> None:
    made = prompts(1000, 8, 64, "seed")
    assert made == prompts(1000, 8, 64, "seed")
    assert len({tuple(prompt[:4]) for prompt in made}) == 8
    assert all(len(prompt) == 64 and max(prompt) < 1000 for prompt in made)
