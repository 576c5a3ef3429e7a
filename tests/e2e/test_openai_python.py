"""The openai Python SDK against the real server: the version that is installed, and the last of 2.x."""

import sys
from pathlib import Path

import pytest

from tests.default_model import DEFAULT_MODEL
from tests.e2e.clients import python_with, run_python
from tests.e2e.conftest import Mesh

pytestmark = [pytest.mark.e2e, pytest.mark.model]

SCRIPT = Path(__file__).with_name("openai_client.py")


@pytest.mark.parametrize("version", ["installed", "2.x"])
def test_everything_an_sdk_user_does(version: str, mesh: Mesh, dead_url: str) -> None:
    python = Path(sys.executable) if version == "installed" else python_with("openai-2", "openai>=2,<3")
    arguments = {
        "url": mesh.url,
        "dead_url": dead_url,
        "model": DEFAULT_MODEL,
        "key": mesh.key,
        "other_model_key": mesh.create_key("--models", "another:model"),
        "slow_key": mesh.create_key("--rpm", "1"),
    }
    seen = run_python(python, SCRIPT, arguments)
    assert seen.pop("version").startswith("2." if version == "2.x" else "")
    assert seen == {
        "models": [DEFAULT_MODEL],
        "chat": "stop",
        "stream_is_the_chat": True,
        "stream_usage": True,
        "stream_helper": True,
        "raw": [200, True],
        "raw_is_the_chat": True,
        "abort": "assistant",
        "after_abort": True,
        "call_in_history": True,
        "parse": True,
        "stream_parse": True,
        "n": [0, 1],
        "logprobs": [True, True],
        "stream_n": True,
        "stream_logprobs": [True, True],
        "tools": ["tool_calls", None, "weather", True],
        "stream_tools": ["weather", True],
        "named_tool": "stop",
        "parse_tool": [True],
        "tool_result": True,
        "400": ["BadRequestError", "temperature", "invalid_parameter"],
        "400 schema": ["BadRequestError", "response_format.json_schema.schema", "invalid_parameter"],
        "400 tool": ["BadRequestError", "tools[0].function", "invalid_parameter"],
        "400 stream": ["BadRequestError", "top_logprobs", "invalid_parameter"],
        "401": ["AuthenticationError", None, "invalid_api_key"],
        "403": ["PermissionDeniedError", "model", "model_not_allowed"],
        "404": ["NotFoundError", "model", "model_not_found"],
        "429": ["RateLimitError", None, "rate_limit_exceeded"],
        "429 retry-after": True,
        "503": ["InternalServerError", None, "machine_offline"],
    }
