"""The graph on ONNX Runtime against the decoder's definition in numpy, on small random models."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from runtime_server.backends.base import Chunk
from runtime_server.backends.cpu import CpuBackend
from runtime_server.models import graph
from runtime_server.models.cpu_format import kv_bytes_per_token
from runtime_server.models.decoder import DecoderConfig
from runtime_server.models.errors import PullError
from runtime_server.models.footprint import weight_bytes
from runtime_server.models.manifest import MODEL_FILE
from runtime_server.models.pull import PADDED
from runtime_server.models.quantizations import CPU, QUANTIZATIONS
from tests import reference_decoder
from tests.reference_decoder import RandomWeights

LLAMA = DecoderConfig(
    architecture="llama",
    layers=2,
    hidden=64,
    intermediate=96,
    heads=4,
    kv_heads=2,
    head_dim=16,
    vocab_size=99,
    context_length=64,
    rms_eps=1e-5,
    rope_inv_freq=tuple(10000.0 ** (-np.arange(8) / 8)),
)
CONFIGS = {
    "llama": LLAMA,
    "llama, tied": replace(LLAMA, tied_embeddings=True),
    "llama, scaled rotary": replace(LLAMA, rope_attention_scale=1.3),
    "mistral, window": replace(LLAMA, architecture="mistral", sliding_window=8),
    "qwen2": replace(LLAMA, architecture="qwen2", qkv_bias=True),
    "qwen3": replace(LLAMA, architecture="qwen3", qk_norm=True, head_dim=32, rope_inv_freq=tuple(1 / np.arange(1, 17))),
}
SEQUENCES, WIDTH, CHUNK = 4, 4, 16
"""Sequences that fit the cache, blocks of each, and tokens of a chunk."""
BLOCKS = SEQUENCES * WIDTH


@contextmanager
def backend(config: DecoderConfig, folder: Path, quantization: str = "fp32") -> Iterator[CpuBackend]:
    folder.mkdir(exist_ok=True)
    graph.build(config, RandomWeights(config), folder, quantization=quantization)
    device = CpuBackend(folder, config, blocks=BLOCKS, max_batch=SEQUENCES, threads=2)
    try:
        yield device
    finally:
        device.close()


def table(sequence: int) -> list[int]:
    """Blocks of one sequence, scattered over the cache."""
    return [(5 * (sequence * WIDTH + i) + 3) % BLOCKS for i in range(WIDTH)]


def prompt(length: int, seed: int = 1) -> list[int]:
    tokens: list[int] = np.random.default_rng(seed).integers(0, 99, length).tolist()
    return tokens


def feed(
    device: CpuBackend, blocks: Sequence[int], tokens: Sequence[int], chunk: int = CHUNK, start: int = 0
) -> NDArray[np.float32]:
    """Logits after the last of ``tokens``, of which those from ``start`` on are fed in chunks."""
    for first in range(start, len(tokens), chunk):
        part = tokens[first : first + chunk]
        result = device.run([Chunk(blocks, first, part, first + len(part) == len(tokens))])
    row: NDArray[np.float32] = result[0].copy()
    return row


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("chunk", [1, 5, 16])
def test_logits_are_those_of_the_definition(name: str, chunk: int, tmp_path: Path) -> None:
    config = CONFIGS[name]
    tokens = prompt(40)
    expected = reference_decoder.logits(config, RandomWeights(config), tokens)
    with backend(config, tmp_path) as device:
        # Keys and values are stored in bf16.
        np.testing.assert_allclose(feed(device, table(2), tokens, chunk), expected[-1], rtol=5e-3, atol=5e-2)


def test_int8_stays_close_to_the_definition(tmp_path: Path) -> None:
    tokens = prompt(30)
    expected = reference_decoder.logits(LLAMA, RandomWeights(LLAMA), tokens)[-1]
    with backend(LLAMA, tmp_path, "int8") as device:
        actual = feed(device, table(0), tokens)
    assert np.linalg.norm(actual - expected) / np.linalg.norm(expected) < 0.03


@pytest.mark.parametrize("quantization", CPU)
def test_a_mixed_step_gives_each_row_the_bits_it_gets_alone(quantization: str, tmp_path: Path) -> None:
    prompts = [prompt(10 + 3 * sequence, seed=sequence) for sequence in range(SEQUENCES)]
    with backend(LLAMA, tmp_path, quantization) as device:
        for sequence in (0, 1, 3):
            feed(device, table(sequence), prompts[sequence])
        chunks = [
            Chunk(table(3), len(prompts[3]), [7], True),
            Chunk(table(2), 0, prompts[2][:CHUNK], True),
            Chunk(table(0), len(prompts[0]), [8], True),
            Chunk(table(1), len(prompts[1]), [9], False),
        ]
        together = device.run(chunks).copy()
        alone = [device.run([chunk]).copy() for chunk in chunks]
    assert together.shape == (3, LLAMA.vocab_size)
    np.testing.assert_array_equal(together, np.concatenate(alone))


@pytest.mark.parametrize("quantization", CPU)
def test_however_a_prompt_is_cut_its_logits_have_the_same_bits(quantization: str, tmp_path: Path) -> None:
    tokens = prompt(45)
    with backend(LLAMA, tmp_path, quantization) as device:
        whole = feed(device, table(0), tokens, chunk=len(tokens))
        for chunk in (1, 3, 16, 17):
            np.testing.assert_array_equal(feed(device, table(1), tokens, chunk), whole)


def test_a_shared_prefix_gives_the_bits_of_an_own_one(tmp_path: Path) -> None:
    shared = prompt(32)
    with backend(LLAMA, tmp_path, "int8") as device:
        feed(device, table(0), [*shared, 1, 2, 3])
        for sequence in (1, 2):
            tokens = [*shared, *prompt(9, seed=sequence)]
            alone = feed(device, table(3), tokens)
            both = [*table(0)[:2], *table(sequence)[:2]]
            np.testing.assert_array_equal(feed(device, both, tokens, start=32), alone)


def test_a_step_leaves_other_sequences_alone(tmp_path: Path) -> None:
    tokens = prompt(20)
    with backend(LLAMA, tmp_path) as device:
        feed(device, table(1), tokens)
        before = device.run([Chunk(table(1), 20, [5], True)]).copy()
        feed(device, table(0), prompt(40, seed=2))
        feed(device, table(3), prompt(12, seed=3))
        device.run([Chunk(table(0), 40, [1], True), Chunk(table(3), 12, [1], True)])
        np.testing.assert_array_equal(device.run([Chunk(table(1), 20, [5], True)]), before)


def test_a_reused_block_remembers_nothing(tmp_path: Path) -> None:
    with backend(LLAMA, tmp_path) as device:
        fresh = feed(device, table(0), prompt(9))
        feed(device, table(0), prompt(64, seed=4))
        np.testing.assert_array_equal(feed(device, table(0), prompt(9)), fresh)


def test_the_last_place_of_the_context_can_be_used(tmp_path: Path) -> None:
    tokens = prompt(LLAMA.context_length)
    expected = reference_decoder.logits(LLAMA, RandomWeights(LLAMA), tokens)[-1]
    with backend(LLAMA, tmp_path) as device:
        feed(device, table(0), tokens[:-1])
        actual = device.run([Chunk(table(0), len(tokens) - 1, tokens[-1:], True)])[0]
        np.testing.assert_allclose(actual, expected, rtol=5e-3, atol=5e-2)


def test_a_step_may_want_no_logits(tmp_path: Path) -> None:
    with backend(LLAMA, tmp_path) as device:
        assert device.run([Chunk(table(0), 0, prompt(5), False)]).shape == (0, LLAMA.vocab_size)


def test_the_cache_has_the_size_that_was_planned(tmp_path: Path) -> None:
    with backend(LLAMA, tmp_path) as device:
        assert device.kv_cache_bytes == BLOCKS * device.block_tokens * kv_bytes_per_token(LLAMA)


def test_a_folder_without_a_readable_model_is_an_error_with_a_hint(tmp_path: Path) -> None:
    (tmp_path / MODEL_FILE).write_bytes(b"no model")
    with pytest.raises(PullError) as caught:
        CpuBackend(tmp_path, LLAMA, blocks=BLOCKS, max_batch=1, threads=2)
    assert "--force" in str(caught.value)


def test_an_unknown_quantisation_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="int8, fp32"):
        graph.build(LLAMA, RandomWeights(LLAMA), tmp_path, quantization="int3")


def test_a_format_takes_the_room_that_is_checked_for(tmp_path: Path) -> None:
    """The graph knows every format that can be asked for, and none takes more than is checked for."""
    config = replace(LLAMA, vocab_size=4096, hidden=256, intermediate=512, context_length=16)
    for name in QUANTIZATIONS:
        folder = tmp_path / name
        folder.mkdir()
        graph.build(config, RandomWeights(config), folder, quantization=name)
        weights = sum(file.stat().st_size for file in folder.glob("*.bin"))
        assert weights <= PADDED * weight_bytes(config, name)


def test_weights_that_are_no_numbers_are_refused_at_load(tmp_path: Path) -> None:
    graph.build(LLAMA, RandomWeights(LLAMA), tmp_path, quantization="fp32")
    weights = (tmp_path / MODEL_FILE).with_suffix(".bin")
    weights.write_bytes(b"\xff" * weights.stat().st_size)
    with pytest.raises(PullError, match="damaged"):
        CpuBackend(tmp_path, LLAMA, blocks=BLOCKS, max_batch=1, threads=2)


@pytest.mark.parametrize("wrong", [{"vocab_size": 98}, {"layers": 3}, {"kv_heads": 4}, {"head_dim": 32}], ids=str)
def test_a_model_of_another_shape_is_refused_at_load(wrong: dict[str, Any], tmp_path: Path) -> None:
    graph.build(LLAMA, RandomWeights(LLAMA), tmp_path)
    with pytest.raises(PullError, match="cannot be read"):
        CpuBackend(tmp_path, replace(LLAMA, **wrong), blocks=BLOCKS, max_batch=1, threads=2)
