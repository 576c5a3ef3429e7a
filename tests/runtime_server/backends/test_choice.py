"""Where models go. The card and its backend are stand-ins; the processor is not."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from mantler.config import RuntimeSettings
from runtime_server.backends.choice import load_backend, place, quantization_for
from runtime_server.backends.cpu import CpuBackend
from runtime_server.backends.cuda_driver import Card
from runtime_server.backends.cuda_runtime import CudaError
from runtime_server.backends.devices import CudaState, DeviceError, Missing
from runtime_server.engine.kv_plan import KvPlanError
from runtime_server.models.footprint import CUDA_WORKSPACE_BYTES, usable_bytes
from runtime_server.models.manifest import Manifest
from runtime_server.models.pull import pull
from tests.tiny_models import CONTEXT, tiny_config, write_gguf

CARD = Card(1, "Test Card", (9, 0), 80 * 10**9, 70 * 10**9)


@pytest.fixture
def manifest(tmp_path: Path) -> Manifest:
    return pull(str(write_gguf(tmp_path / "tiny.gguf", tiny_config("llama"))), tmp_path)


@pytest.fixture
def cards(monkeypatch: pytest.MonkeyPatch) -> None:
    state = CudaState((replace(CARD, index=0), CARD), driver=(13, 0))
    monkeypatch.setattr("runtime_server.backends.choice.cuda_state", lambda: state)


def settings(home: Path, **values: Any) -> RuntimeSettings:
    return RuntimeSettings(home=home, **{"max_batch": 2, "threads": 1, **values})


def test_without_cuda_models_run_on_the_processor(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = CudaState(missing=(Missing("no driver", "install it"),))
    monkeypatch.setattr("runtime_server.backends.choice.cuda_state", lambda: state)
    wishes = settings(tmp_path)
    placement = place(manifest, wishes)
    assert (str(placement.device), placement.device.reason) == ("cpu", "no driver")
    backend = load_backend(placement, manifest, wishes.models_dir / "tiny/latest", wishes)
    try:
        assert isinstance(backend, CpuBackend)
        assert backend.blocks == placement.plan.blocks == 2 * CONTEXT // backend.block_tokens
    finally:
        backend.close()


@pytest.mark.usefixtures("cards")
def test_the_backend_of_a_card_gets_the_plan_for_its_memory(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: dict[str, object] = {}

    class CudaBackend:
        def __init__(self, folder: Path, config: object, **arguments: object) -> None:
            made.update(arguments, folder=folder, config=config)

    monkeypatch.setattr("runtime_server.backends.choice.CudaBackend", CudaBackend)
    stored, wishes = replace(manifest, quantization="bf16"), settings(tmp_path, device="cuda:1", prefill_chunk=64)
    placement = place(stored, wishes)
    load_backend(placement, stored, tmp_path, wishes)
    assert made == {
        "folder": tmp_path,
        "config": stored.config,
        "device_id": 1,
        "blocks": placement.plan.blocks,
        "longest": placement.plan.max_request_tokens,
        "max_batch": 2,
        "step_tokens": 4 * 256,
    }


@pytest.mark.usefixtures("cards")
@pytest.mark.parametrize(
    ("fault", "kind", "says"),
    [
        (MemoryError("cudaMalloc failed"), KvPlanError, "the card does not give that much memory"),
        (CudaError("cudaSetDevice", 46, "cudaErrorDevicesUnavailable"), DeviceError, "does not work: cudaSetDevice"),
    ],
    ids=["full", "broken"],
)
def test_a_card_that_is_not_what_it_said(
    fault: Exception,
    kind: type[Exception],
    says: str,
    tmp_path: Path,
    manifest: Manifest,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fail(*arguments: object, **named: object) -> None:
        raise fault

    monkeypatch.setattr("runtime_server.backends.choice.CudaBackend", fail)
    stored, wishes = replace(manifest, quantization="bf16"), settings(tmp_path, device="cuda:1")
    with pytest.raises(kind, match=says):
        load_backend(place(stored, wishes), stored, tmp_path, wishes)


@pytest.mark.usefixtures("cards")
def test_a_card_without_room_is_told_before_loading(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = CudaState((replace(CARD, index=0, free_bytes=CUDA_WORKSPACE_BYTES),), driver=(13, 0))
    monkeypatch.setattr("runtime_server.backends.choice.cuda_state", lambda: state)
    with pytest.raises(
        KvPlanError, match=r"weights 0 MB \+ workspace 1,000 MB = 1,000 MB, but 900 MB of memory may be taken"
    ):
        place(replace(manifest, quantization="bf16"), settings(tmp_path))
    assert usable_bytes("cuda", CUDA_WORKSPACE_BYTES) == 900 * 10**6


def test_the_processor_is_refused_with_the_same_arithmetic(
    tmp_path: Path, manifest: Manifest, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("runtime_server.backends.choice.available_bytes", lambda: 1000)
    with pytest.raises(
        KvPlanError, match=r"weights 0 MB \+ workspace \d+ MB = \d+ MB, but 0 MB of memory may be taken"
    ):
        place(manifest, settings(tmp_path, device="cpu"))


@pytest.mark.usefixtures("cards")
def test_a_model_for_the_processor_is_not_put_on_a_card(tmp_path: Path, manifest: Manifest) -> None:
    with pytest.raises(DeviceError, match="stored as int8"):
        place(manifest, settings(tmp_path, device="cuda"))


@pytest.mark.usefixtures("cards")
def test_what_is_pulled_fits_the_device() -> None:
    assert [quantization_for(wish) for wish in ("cpu", "auto", "cuda", "cuda:1")] == ["int8", "bf16", "bf16", "bf16"]


def test_without_a_card_models_are_pulled_for_the_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("runtime_server.backends.choice.cuda_state", lambda: CudaState(missing=(Missing("a", "b"),)))
    assert quantization_for("auto") == "int8"
