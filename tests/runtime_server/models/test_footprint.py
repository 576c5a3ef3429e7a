from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_server.models import cuda_format
from runtime_server.models.footprint import Footprint, footprint, usable_bytes, weight_bytes
from runtime_server.models.graph import build
from runtime_server.models.quantizations import QUANTIZATIONS
from runtime_server.models.shapes import parameter_count
from tests.reference_decoder import RandomWeights
from tests.tiny_models import tiny_config

FOOTPRINTS = st.builds(
    Footprint, st.integers(0, 10**11), st.integers(0, 10**10), st.integers(1, 10**6), st.sampled_from([16, 128, 256])
)


@given(FOOTPRINTS, st.integers(1, 512), st.integers(1, 10**6), st.integers(0, 10**12))
def test_what_is_said_to_fit_fits_and_no_more_would(size: Footprint, streams: int, context: int, usable: int) -> None:
    most, longest = size.most_streams(context, usable), size.longest_context(streams, usable)
    assert most == 0 or size.total_bytes(most, context) <= usable
    assert size.total_bytes(most + 1, context) > usable
    assert longest == 0 or size.total_bytes(streams, longest) <= usable
    assert size.total_bytes(streams, longest + 1) > usable
    assert (size.total_bytes(streams, context) <= usable) == (most >= streams) == (longest >= context)


@pytest.mark.parametrize("architecture", ["llama", "qwen2", "qwen3"])
@pytest.mark.parametrize("quantization", QUANTIZATIONS)
def test_weights_take_what_their_file_does(architecture: str, quantization: str, tmp_path: Path) -> None:
    config = replace(tiny_config(architecture), vocab_size=4096, context_length=4096)
    build(config, RandomWeights(config), tmp_path, quantization=quantization)
    # Vectors are so short here that they stand in the graph, not in the file; the file has room between tensors.
    stored = sum(file.stat().st_size for file in tmp_path.iterdir())
    assert stored == pytest.approx(weight_bytes(config, quantization), rel=0.1)


def test_the_sizes_on_the_processor() -> None:
    config = tiny_config("llama")
    size = footprint("cpu", config, "int8", max_batch=4, step_tokens=512)
    assert size.kv_bytes_per_token == 2 * config.layers * config.kv_heads * config.head_dim * 2
    assert size.block_tokens == 16
    assert size.workspace_bytes > 4 * 4 * config.vocab_size
    stored = footprint("cpu", config, "int8", max_batch=4, step_tokens=512, stored_bytes=12_345)
    assert stored == replace(size, weight_bytes=12_345)


def test_the_sizes_on_a_card() -> None:
    config = tiny_config("llama")
    wide, narrow = (footprint("cuda", config, name, max_batch=4, step_tokens=512) for name in ("bf16", "int4"))
    assert wide.weight_bytes == 2 * (parameter_count(config) + config.context_length * config.head_dim)
    assert 0 < narrow.weight_bytes < wide.weight_bytes
    assert wide.block_tokens == cuda_format.block_tokens(config.head_dim)


def test_a_card_is_never_filled_to_the_last_byte() -> None:
    assert usable_bytes("cuda", 10**9) < usable_bytes("cpu", 10**9) == 10**9
