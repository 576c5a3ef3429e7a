"""A gRPC client that has never seen the protos: ``buf curl`` learns them through reflection."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from tests.default_model import DEFAULT_MODEL
from tests.e2e.conftest import Mesh
from tests.e2e.processes import KEY

pytestmark = [pytest.mark.e2e, pytest.mark.model]


def buf_curl(address: str, method: str, request: object) -> list[dict[str, object]]:
    buf = Path(sys.executable).with_name("buf")
    url = f"http://{address}/{method}"
    command = [str(buf), "curl", "--protocol", "grpc", "--http2-prior-knowledge", "-H", f"Authorization: Bearer {KEY}"]
    command += ["--data", json.dumps(request), url]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    decoder, messages, rest = json.JSONDecoder(), [], done.stdout.lstrip()
    while rest:
        message, end = decoder.raw_decode(rest)
        messages.append(message)
        rest = rest[end:].lstrip()
    return messages


@pytest.fixture(params=["runtime", "edge"])
def address(request: pytest.FixtureRequest, mesh: Mesh) -> str:
    """Of either of the two servers."""
    return mesh.runtime if request.param == "runtime" else mesh.grpc


def test_a_generation_streams_through_reflection(address: str) -> None:
    request = {
        "requestId": "reflection",
        "model": DEFAULT_MODEL,
        "chat": {"messages": [{"role": "ROLE_USER", "content": [{"text": "Say hello."}]}]},
        "sampling": {"temperature": 0},
        "stop": {"maxTokens": 8, "ignoreEos": True},
    }
    events = buf_curl(address, "mantler.v1.GenerationService/Generate", request)
    assert "started" in events[0]
    assert len(events) > 3
    finished = events[-1]["finished"]
    assert isinstance(finished, dict)
    assert finished["reason"] == "FINISH_REASON_LENGTH"
    assert finished["usage"]["completionTokens"] == 8


def test_models_are_listed_through_reflection(address: str) -> None:
    (answer,) = buf_curl(address, "mantler.v1.ModelService/ListModels", {})
    models = answer["models"]
    assert isinstance(models, list)
    assert [(model["id"], model["state"]) for model in models] == [(DEFAULT_MODEL, "MODEL_STATE_READY")]


@pytest.mark.parametrize("service", ["", "mantler.v1.GenerationService", "mantler.v1.ModelService"])
def test_every_service_reports_its_health(address: str, service: str) -> None:
    assert buf_curl(address, "grpc.health.v1.Health/Check", {"service": service}) == [{"status": "SERVING"}]
