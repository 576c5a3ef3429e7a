"""The AI SDK (npm ``ai``), through its provider for OpenAI-compatible servers, against the real server."""

from pathlib import Path

import pytest

from tests.default_model import DEFAULT_MODEL
from tests.e2e.clients import node_with, run_node
from tests.e2e.conftest import Mesh

pytestmark = [pytest.mark.e2e, pytest.mark.model]

SCRIPT = Path(__file__).with_name("ai_sdk_client.mjs")
# The last ones that run on Node.js 20.
PACKAGES = ("ai@^6", "@ai-sdk/openai-compatible@^2", "zod@^4")


def test_everything_an_sdk_user_does(mesh: Mesh) -> None:
    arguments = {"url": mesh.url, "model": DEFAULT_MODEL, "key": mesh.key, "slow_key": mesh.create_key("--rpm", "1")}
    assert run_node(node_with("ai-sdk", *PACKAGES), SCRIPT, arguments) == {
        "chat": "stop",
        "stream_is_the_chat": True,
        "stream_usage": True,
        "object": True,
        "tools": [["weather", True]],
        "tool_results": [True],
        "stream_tools": [True],
        "finish": ["tool-calls", "tool-calls"],
        "stream_object": True,
        "abort": ["abort"],
        "after_abort": True,
        "400": ["AI_APICallError", 400, False, "temperature", "invalid_parameter"],
        "401": ["AI_APICallError", 401, False, None, "invalid_api_key"],
        "404": ["AI_APICallError", 404, False, "model", "model_not_found"],
        "429": ["AI_APICallError", 429, True, None, "rate_limit_exceeded"],
    }
