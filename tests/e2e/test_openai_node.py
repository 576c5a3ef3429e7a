"""The openai Node SDK against the real server."""

from pathlib import Path

import pytest

from tests.default_model import DEFAULT_MODEL
from tests.e2e.clients import node_with, run_node
from tests.e2e.conftest import Mesh

pytestmark = [pytest.mark.e2e, pytest.mark.model]

SCRIPT = Path(__file__).with_name("openai_client.mjs")


def test_everything_an_sdk_user_does(mesh: Mesh, dead_url: str) -> None:
    arguments = {
        "url": mesh.url,
        "dead_url": dead_url,
        "model": DEFAULT_MODEL,
        "key": mesh.key,
        "other_model_key": mesh.create_key("--models", "another:model"),
        "slow_key": mesh.create_key("--rpm", "1"),
    }
    assert run_node(node_with("openai-node", "openai@^7", "zod@^4"), SCRIPT, arguments) == {
        "models": [DEFAULT_MODEL],
        "chat": "stop",
        "stream_is_the_chat": True,
        "stream_usage": True,
        "stream_helper": True,
        "raw": [200, True, True],
        "abort": "assistant",
        "after_abort": True,
        "call_in_history": True,
        "tools": ["tool_calls", None, "weather"],
        "stream_tools": [True],
        "run_tools": True,
        "parse": True,
        "stream_parse": True,
        "n": [0, 1],
        "logprobs": [True, True],
        "stream_n": True,
        "stream_logprobs": [True, True],
        "400": ["BadRequestError", 400, "temperature", "invalid_parameter"],
        "400 schema": ["BadRequestError", 400, "response_format.json_schema.schema", "invalid_parameter"],
        "400 stream": ["BadRequestError", 400, "top_logprobs", "invalid_parameter"],
        "401": ["AuthenticationError", 401, None, "invalid_api_key"],
        "403": ["PermissionDeniedError", 403, "model", "model_not_allowed"],
        "404": ["NotFoundError", 404, "model", "model_not_found"],
        "429": ["RateLimitError", 429, None, "rate_limit_exceeded"],
        "429 retry-after": True,
        "503": ["InternalServerError", 503, None, "machine_offline"],
    }
