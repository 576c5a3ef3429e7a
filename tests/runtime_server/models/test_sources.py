"""GGUF files and Hugging Face folders give the configuration and the weights that were written into them."""

from __future__ import annotations

import contextlib
import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from runtime_server.models import rope
from runtime_server.models.decoder import SUPPORTED_ARCHITECTURES, DecoderConfig
from runtime_server.models.errors import PullError
from runtime_server.models.gguf_file import GgufFile
from runtime_server.models.shapes import weight_shapes
from runtime_server.models.source import ModelSource, open_source
from tests.reference_decoder import RandomWeights
from tests.tiny_models import MERGES, SPECIAL, TOKENS, bfloat16, gguf_name, tiny_config, write_folder, write_gguf

LLAMA = tiny_config("llama")
Q8 = gguf.GGMLQuantizationType.Q8_0


def _equal_weights(source: ModelSource, config: DecoderConfig, tolerance: float = 0.0) -> None:
    expected = RandomWeights(config)
    for name in weight_shapes(config):
        loaded = source.weights.load(name)
        assert loaded.dtype == np.float32
        np.testing.assert_allclose(loaded, expected.load(name), atol=tolerance, rtol=0)


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
@pytest.mark.parametrize("tied", [False, True])
def test_a_gguf_file_gives_what_was_written(tmp_path: Path, architecture: str, tied: bool) -> None:
    config = tiny_config(architecture, tied=tied)
    source = open_source(write_gguf(tmp_path / "m.gguf", config))
    assert source.config == config
    _equal_weights(source, config)
    with pytest.raises(KeyError):
        source.weights.load("layers.9.q")


@pytest.mark.parametrize("architecture", SUPPORTED_ARCHITECTURES)
@pytest.mark.parametrize("shards", [1, 3])
def test_a_folder_gives_what_was_written(tmp_path: Path, architecture: str, shards: int) -> None:
    config = tiny_config(architecture)
    source = open_source(write_folder(tmp_path / "m", config, shards=shards))
    assert source.config == config
    _equal_weights(source, config)


def test_quantised_and_half_precision_weights_are_read(tmp_path: Path) -> None:
    quantised = open_source(write_gguf(tmp_path / "q8.gguf", LLAMA, kind=Q8))
    _equal_weights(quantised, LLAMA, tolerance=0.03)
    half = open_source(write_folder(tmp_path / "fp16", LLAMA, dtype=np.float16))
    _equal_weights(half, LLAMA, tolerance=0.002)


def test_bfloat16_is_read_exactly(tmp_path: Path) -> None:
    import ml_dtypes

    source = open_source(write_folder(tmp_path / "m", LLAMA, dtype=ml_dtypes.bfloat16))
    expected = bfloat16(RandomWeights(LLAMA).load("layers.1.down"))
    np.testing.assert_array_equal(source.weights.load("layers.1.down"), expected)


def test_another_architecture_is_refused_with_the_supported_ones(tmp_path: Path) -> None:
    other = replace(LLAMA, architecture="gemma3")
    for path in (write_gguf(tmp_path / "m.gguf", other), write_folder(tmp_path / "m", other)):
        with pytest.raises(PullError, match=r"'gemma3' is not supported.*llama, mistral, qwen2, qwen3"):
            open_source(path)


@pytest.mark.parametrize("drop", ["layers.1.down", "final_norm", "embed"])
def test_a_missing_weight_is_named(tmp_path: Path, drop: str) -> None:
    tied = replace(LLAMA, tied_embeddings=True)
    message = "vocab_size is 0" if drop == "embed" else f"missing, '{drop}'"
    with pytest.raises(PullError, match=message):
        open_source(write_gguf(tmp_path / "m.gguf", tied, drop=drop))
    with pytest.raises(PullError, match=f"missing, '{drop}'"):
        open_source(write_folder(tmp_path / "m", tied, drop=drop))


def test_weights_of_another_shape_or_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(PullError, match="has the shape"):
        open_source(write_gguf(tmp_path / "a.gguf", LLAMA, fields={"llama.feed_forward_length": 95}))
    with pytest.raises(PullError, match="has the shape"):
        open_source(write_folder(tmp_path / "a", LLAMA, settings={"intermediate_size": 95}))
    bias = {"blk.0.attn_output.bias": np.zeros(64, np.float32)}
    with pytest.raises(PullError, match=r"does not use: 'blk\.0\.attn_output\.bias'"):
        open_source(write_gguf(tmp_path / "b.gguf", LLAMA, extra=bias))


def test_values_that_are_no_numbers_are_damage(tmp_path: Path) -> None:
    path = write_gguf(tmp_path / "m.gguf", LLAMA)
    tensor = next(t for t in gguf.GGUFReader(path).tensors if t.name == gguf_name("layers.0.v"))
    with path.open("r+b") as file:
        file.seek(tensor.data_offset)
        file.write(struct.pack("<f", float("nan")))
    with pytest.raises(PullError, match=r"'layers\.0\.v' holds values that are not numbers"):
        open_source(path).weights.load("layers.0.v")


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"llama.expert_count": 8}, "Mixtures of experts"),
        ({"llama.rope.dimension_count": 8}, "a part of each head"),
        ({"llama.rope.scaling.type": "longrope", "llama.rope.scaling.factor": 4.0}, "'longrope' is not supported"),
        ({"split.count": 2}, "several GGUF files"),
        ({"llama.block_count": 2**31}, "layers is 2147483648"),
        ({"llama.attention.head_count": [4, 4]}, "is not int"),
        ({"llama.context_length": None}, "lacks the field 'llama.context_length'"),
        ({"llama.attention.head_count_kv": 3}, "do not go with"),
    ],
)
def test_variants_that_do_not_run_are_refused(tmp_path: Path, fields: dict[str, Any], message: str) -> None:
    with pytest.raises(PullError, match=message):
        open_source(write_gguf(tmp_path / "m.gguf", LLAMA, fields=fields))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"hidden_act": "gelu"}, "'gelu' is not supported"),
        ({"quantization_config": {"bits": 4}}, "already quantised"),
        ({"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "'dynamic' is not supported"),
        ({"rope_parameters": {"rope_type": "longrope", "rope_theta": 1e4}}, "'longrope' is not supported"),
        ({"rope_scaling": {"type": "linear"}}, "lacks 'factor'"),
        ({"hidden_size": "64"}, "'hidden_size' is not int"),
        ({"vocab_size": True}, "'vocab_size' is not int"),
    ],
)
def test_settings_that_do_not_run_are_refused(tmp_path: Path, values: dict[str, Any], message: str) -> None:
    with pytest.raises(PullError, match=message):
        open_source(write_folder(tmp_path / "m", LLAMA, settings=values))


def test_rope_factors_and_scaling_of_gguf_are_applied(tmp_path: Path) -> None:
    plain = np.array(LLAMA.rope_inv_freq)
    factors = np.linspace(1, 8, 8, dtype=np.float32)
    with_factors = open_source(write_gguf(tmp_path / "a.gguf", LLAMA, extra={"rope_freqs.weight": factors}))
    np.testing.assert_allclose(with_factors.config.rope_inv_freq, plain / factors)
    scaling = {"llama.rope.scaling.type": "linear", "llama.rope.scaling.factor": 4.0}
    linear = open_source(write_gguf(tmp_path / "b.gguf", LLAMA, fields=scaling))
    np.testing.assert_allclose(linear.config.rope_inv_freq, plain / 4)
    scaling |= {"llama.rope.scaling.type": "yarn", "llama.rope.scaling.original_context_length": 16}
    yarn = open_source(write_gguf(tmp_path / "c.gguf", LLAMA, fields=scaling)).config
    np.testing.assert_allclose(
        yarn.rope_inv_freq, rope.yarn(plain, base=10_000.0, factor=4.0, original_context=16), rtol=1e-12
    )
    assert yarn.rope_attention_scale == pytest.approx(1 + 0.1 * np.log(4.0))


_LLAMA3 = {
    "rope_type": "llama3",
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 8192,
}
_YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}


@pytest.mark.parametrize("scaling", [_LLAMA3, _YARN, {"type": "linear", "factor": 2.0}, None])
def test_both_forms_of_rope_settings_say_the_same(tmp_path: Path, scaling: dict[str, Any] | None) -> None:
    older = {"rope_theta": 500_000.0, "rope_scaling": scaling}
    newer = {"rope_theta": None, "rope_parameters": {"rope_theta": 500_000.0, **(scaling or {})}}
    first = open_source(write_folder(tmp_path / "a", LLAMA, settings=older)).config
    assert open_source(write_folder(tmp_path / "b", LLAMA, settings=newer)).config == first
    assert (first.rope_inv_freq == tuple(rope.inverse_frequencies(16, 500_000.0))) == (scaling is None)
    assert first.context_length == (131072 if scaling is _YARN else 64)


def test_llama3_keeps_fast_angles_and_stretches_slow_ones() -> None:
    plain = rope.inverse_frequencies(128, 500_000.0)
    scaled = rope.llama3(plain, factor=8.0, low=1.0, high=4.0, original_context=8192)
    ratio = plain / scaled
    wavelength = 2 * np.pi / plain
    np.testing.assert_allclose(ratio[wavelength < 8192 / 4], 1)
    np.testing.assert_allclose(ratio[wavelength > 8192], 8)
    assert (np.diff(ratio) >= -1e-9).all()


@pytest.mark.parametrize(
    ("settings_", "window"),
    [
        ({"model_type": "mistral", "sliding_window": 32}, 32),
        ({"model_type": "mistral", "sliding_window": 4096}, None),
        ({"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": False}, None),
        ({"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": True, "max_window_layers": 0}, 32),
        ({"model_type": "qwen2", "sliding_window": 32, "use_sliding_window": True}, None),
    ],
)
def test_sliding_windows(tmp_path: Path, settings_: dict[str, Any], window: int | None) -> None:
    config = tiny_config(settings_["model_type"])
    assert open_source(write_folder(tmp_path / "m", config, settings=settings_)).config.sliding_window == window


def test_mixed_attention_is_refused(tmp_path: Path) -> None:
    mixed = {"sliding_window": 32, "use_sliding_window": True, "max_window_layers": 1}
    with pytest.raises(PullError, match="mix sliding and full"):
        open_source(write_folder(tmp_path / "m", tiny_config("qwen3"), settings=mixed))


def test_a_gguf_file_cut_anywhere_is_damage(tmp_path: Path) -> None:
    data = write_gguf(tmp_path / "m.gguf", LLAMA).read_bytes()
    cut = tmp_path / "cut.gguf"
    # A tensor's padding may follow the last one: the last bytes that matter are just before it.
    for size in [0, 3, 10, 23, 100, *range(200, len(data) - 64, len(data) // 40), len(data) - 64]:
        cut.write_bytes(data[:size])
        with pytest.raises(PullError, match=r"cut\.gguf is (cut off or damaged|not a GGUF file)"):
            open_source(cut)


@pytest.fixture(scope="module")
def small_gguf(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    return write_gguf(tmp_path_factory.mktemp("gguf") / "m.gguf", LLAMA).read_bytes()


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_gguf_header_with_any_bytes_changed_never_crashes(
    small_gguf: bytes, tmp_path: Path, data: st.DataObject
) -> None:
    start = data.draw(st.integers(4, 12_000))
    junk = data.draw(st.binary(min_size=1, max_size=16))
    path = tmp_path / "m.gguf"
    path.write_bytes(small_gguf[:start] + junk + small_gguf[start + len(junk) :])
    with contextlib.suppress(PullError):
        open_source(path)


def test_damaged_folders_say_what_is_wrong(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", LLAMA, shards=2)
    shard = folder / "model-00001-of-00002.safetensors"
    whole = shard.read_bytes()
    for size in (0, 5, 60, len(whole) - 1):
        shard.write_bytes(whole[:size])
        with pytest.raises(PullError, match=r"model-00001-of-00002\.safetensors is cut off or damaged"):
            open_source(folder)
    shard.unlink()
    with pytest.raises(PullError, match=r"model-00001-of-00002\.safetensors is missing"):
        open_source(folder)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../etc/passwd"}}))
    with pytest.raises(PullError, match="outside of its folder"):
        open_source(folder)
    (folder / "config.json").write_text("[1]")
    with pytest.raises(PullError, match=r"config\.json does not hold a JSON object"):
        open_source(folder)
    (folder / "config.json").unlink()
    with pytest.raises(PullError, match=r"config\.json is missing"):
        open_source(folder)


@pytest.mark.model
def test_a_folder_with_an_older_tokenizer_is_converted(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", tiny_config("qwen2"))
    expected = open_source(folder).tokenizer.tokenizer.encode("hello <|im_end|>").ids
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").write_text(json.dumps({token: i for i, token in enumerate(TOKENS)}))
    (folder / "merges.txt").write_text("".join(f"{left} {right}\n" for left, right in MERGES))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    added = {str(i): {"content": token, "special": True} for i, token in enumerate(TOKENS) if token in SPECIAL}
    (folder / "tokenizer_config.json").write_text(
        json.dumps(
            settings | {"tokenizer_class": "Qwen2Tokenizer", "added_tokens_decoder": added, "eos_token": "<|im_end|>"}
        )
    )
    assert open_source(folder).tokenizer.tokenizer.encode("hello <|im_end|>").ids == expected


def test_a_folder_without_a_tokenizer_is_refused(tmp_path: Path) -> None:
    folder = write_folder(tmp_path / "m", tiny_config("qwen2"))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(PullError, match=r"tokenizer\.json is missing"):
        open_source(folder)


def test_the_default_model_is_read_whole(smollm2_gguf: Path) -> None:
    source = open_source(smollm2_gguf)
    assert (source.config.layers, source.config.heads, source.config.kv_heads) == (30, 9, 3)
    assert source.config.tied_embeddings
    stored = GgufFile(smollm2_gguf).tensors["blk.3.attn_q.weight"].load()
    half_split = source.weights.load("layers.3.q")
    np.testing.assert_array_equal(half_split[64 + 1], stored[64 + 2])
    np.testing.assert_array_equal(half_split[64 + 33], stored[64 + 3])
