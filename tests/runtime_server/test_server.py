"""The health that a runtime reports, over gRPC."""

from __future__ import annotations

from pathlib import Path

import grpc
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from mantler.config import RuntimeSettings
from mantler.security.errors import SecurityError
from runtime_server.backends.devices import CudaState, Missing
from runtime_server.models.pull import pull
from runtime_server.server import GENERATION, MODEL, RuntimeFailure, RuntimeServer
from tests.tiny_models import CONTEXT, tiny_config, write_gguf


@pytest.mark.parametrize(
    ("models", "generates"), [([], False), (["tiny:latest"], True)], ids=["no model is wanted", "one is"]
)
async def test_the_whole_serves_once_the_wanted_models_are_loaded(
    tmp_path: Path, models: list[str], generates: bool
) -> None:
    if models:
        pull(str(write_gguf(tmp_path / "tiny.gguf", tiny_config("llama"))), tmp_path)
    settings = RuntimeSettings(
        home=tmp_path, runtime="127.0.0.1:0", model=models, max_batch=2, max_request_tokens=CONTEXT, threads=1
    )
    server = RuntimeServer(settings)
    try:
        port = await server.start()
        async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
            check = health_pb2_grpc.HealthStub(channel).Check
            serving = {
                name: (await check(health_pb2.HealthCheckRequest(service=name))).status
                == health_pb2.HealthCheckResponse.SERVING
                for name in ("", MODEL, GENERATION)
            }
        assert serving == {"": True, MODEL: True, GENERATION: generates}
    finally:
        await server.close()


async def test_a_runtime_that_others_reach_needs_tls(tmp_path: Path) -> None:
    server = RuntimeServer(RuntimeSettings(home=tmp_path, runtime="0.0.0.0:0", model=[]))
    try:
        with pytest.raises(SecurityError, match=r"^0\.0\.0\.0:0 can be reached from other machines"):
            await server.start()
    finally:
        await server.close()


async def test_with_insecure_it_says_what_is_open(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    server = RuntimeServer(RuntimeSettings(home=tmp_path, runtime="0.0.0.0:0", model=[], insecure=True))
    try:
        await server.start()
    finally:
        await server.close()
    assert "anyone who reaches 0.0.0.0:0 can run and load models" in caplog.text


async def test_a_card_that_is_asked_for_and_not_there_is_an_error_at_start(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = CudaState(missing=(Missing("no CUDA provider", "pip install 'mantler[gpu]'"),))
    monkeypatch.setattr("runtime_server.backends.choice.cuda_state", lambda: state)
    server = RuntimeServer(RuntimeSettings(home=tmp_path, runtime="127.0.0.1:0", model=[], device="cuda"))
    try:
        with pytest.raises(RuntimeFailure, match=r"no CUDA provider \(pip install 'mantler\[gpu\]'\)"):
            await server.start()
    finally:
        await server.close()
