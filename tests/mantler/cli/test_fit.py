from __future__ import annotations

import json

import pytest

from runtime_server.backends.devices import CudaState, Missing
from tests.mantler.cli.conftest import Mantler


def test_what_fits_says_how_to_serve_it(mantler: Mantler) -> None:
    result = mantler("fit", "smollm2:135m", "--streams", "4", "--memory-gb", "2")
    assert result.code == 0, result.err
    assert "23,040 bytes of keys and values" in result.out
    assert "fits       yes" in result.out
    assert "--max-batch 4 --max-request-tokens 8192 --kv-memory-mb 755" in result.err


def test_what_does_not_fit_says_what_would(mantler: Mantler) -> None:
    result = mantler("fit", "qwen3:0.6b", "--device", "cuda", "--memory-gb", "8", "--streams", "64")
    assert result.code == 1
    assert "fits       no" in result.out
    assert "would fit: --streams 1, of 40960 tokens each" in result.out
    assert "would fit: --context 640, for 64 streams" in result.out


def test_scripts_get_every_part_of_the_sum(mantler: Mantler) -> None:
    result = mantler(
        "fit", "qwen2.5:0.5b", "--device", "cuda:1", "--memory-gb", "24", "--json", "--quantization", "int4"
    )
    found = json.loads(result.out)
    assert (found["device"], found["quantization"], found["fits"], found["streams"]) == ("cuda", "int4", True, 1)
    assert found["weight_bytes"] + found["workspace_bytes"] + found["cache_bytes"] == found["total_bytes"]
    assert found["usable_bytes"] < found["free_bytes"] == 24 * 10**9
    assert found["max_context"] == found["context"] == 32768
    assert found["would_fit"] == []


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--context", "8193"], "--context: must be at most 8192, the context of smollm2:135m, got 8193"),
        (["--streams", "0"], "--streams: must be a whole number from 1 to 1024"),
        (["--memory-gb", "0"], "--memory-gb: must be a number above 0"),
        (["--device", "cpu", "--quantization", "int4"], "--quantization: must be int8 or fp32 on the device cpu"),
        (["--device", "gpu"], "--device: must be auto, cpu, cuda or cuda:N"),
    ],
)
def test_bad_values_are_named_with_their_range(mantler: Mantler, flags: list[str], says: str) -> None:
    result = mantler("fit", "smollm2:135m", *flags)
    assert result.code == 2
    assert says in result.err


def test_a_card_that_is_not_there_is_no_memory_of_zero(mantler: Mantler, monkeypatch: pytest.MonkeyPatch) -> None:
    state = CudaState(missing=(Missing("no driver", "install it"),))
    monkeypatch.setattr("runtime_server.backends.cuda_state.cuda_state", lambda: state)
    result = mantler("fit", "smollm2:135m", "--device", "cuda")
    assert result.code == 1
    assert "CUDA cannot be used here: no driver" in result.err
    assert "--memory-gb" in result.err


def test_without_a_size_it_is_what_is_free_here(mantler: Mantler, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mantler.memory.available_bytes", lambda: 10**9)
    result = mantler("fit", "smollm2:135m", "--json", "--context", "256")
    assert json.loads(result.out)["free_bytes"] == 10**9
