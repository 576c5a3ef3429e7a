"""LangChain's ``ChatOpenAI`` against the real server."""

from pathlib import Path

import pytest

from tests.default_model import DEFAULT_MODEL
from tests.e2e.clients import python_with, run_python
from tests.e2e.conftest import Mesh

pytestmark = [pytest.mark.e2e, pytest.mark.model]

SCRIPT = Path(__file__).with_name("langchain_client.py")


def test_everything_a_langchain_user_does(mesh: Mesh) -> None:
    arguments = {"url": mesh.url, "model": DEFAULT_MODEL, "key": mesh.key, "slow_key": mesh.create_key("--rpm", "1")}
    assert run_python(python_with("langchain", "langchain-openai>=1,<2"), SCRIPT, arguments) == {
        "chat": ["stop", DEFAULT_MODEL],
        "batch": [True, True],
        "stream_is_the_chat": True,
        "stream_usage": True,
        "logprobs": True,
        "structured": True,
        "structured_dict": True,
        "n": [2, True],
        "tools": [["City", True]],
        "structured_by_call": True,
        "history": "ai",
        "call_in_history": True,
        "400": ["BadRequestError", "temperature", "invalid_parameter"],
        "401": ["AuthenticationError", None, "invalid_api_key"],
        "404": ["NotFoundError", "model", "model_not_found"],
        "429": ["RateLimitError", None, "rate_limit_exceeded"],
    }
