"""The openai Python SDK against the real server: the version that is installed, and the last of 2.x."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.default_model import DEFAULT_MODEL
from tests.e2e.conftest import Mesh

pytestmark = [pytest.mark.e2e, pytest.mark.model]

SCRIPT = Path(__file__).with_name("openai_client.py")


@pytest.fixture(scope="session")
def openai_2() -> Path:
    """A folder with the last openai 2.x, kept for later runs."""
    folder = ROOT / ".cache" / "openai-2"
    if not (folder / "openai").is_dir():
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "openai>=2,<3"]
        subprocess.run(command, check=True, timeout=110)
    return folder


@pytest.mark.parametrize("version", ["installed", "2.x"])
def test_everything_an_sdk_user_does(version: str, mesh: Mesh, dead_url: str, request: pytest.FixtureRequest) -> None:
    environment = dict(os.environ)
    if version == "2.x":
        environment["PYTHONPATH"] = str(request.getfixturevalue("openai_2"))
    arguments = {
        "url": mesh.url,
        "dead_url": dead_url,
        "model": DEFAULT_MODEL,
        "key": mesh.key,
        "other_model_key": mesh.create_key("--models", "another:model"),
        "slow_key": mesh.create_key("--rpm", "1"),
    }
    command = [sys.executable, str(SCRIPT), json.dumps(arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen.pop("version").startswith("2." if version == "2.x" else "")
    assert seen == {
        "models": [DEFAULT_MODEL],
        "chat": "stop",
        "stream_is_the_chat": True,
        "stream_usage": True,
        "400": ["BadRequestError", "temperature", "invalid_parameter"],
        "401": ["AuthenticationError", None, "invalid_api_key"],
        "403": ["PermissionDeniedError", "model", "model_not_allowed"],
        "404": ["NotFoundError", "model", "model_not_found"],
        "429": ["RateLimitError", None, "rate_limit_exceeded"],
        "429 retry-after": True,
        "503": ["InternalServerError", None, "machine_offline"],
    }
