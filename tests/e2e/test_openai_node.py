"""The openai Node SDK against the real server."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.default_model import DEFAULT_MODEL
from tests.e2e.conftest import Mesh

pytestmark = [
    pytest.mark.e2e,
    pytest.mark.model,
    pytest.mark.skipif(shutil.which("npm") is None, reason="the Node SDK needs Node.js and npm, which are not here"),
]

SCRIPT = Path(__file__).with_name("openai_client.mjs")
PACKAGE = "openai@^7"


@pytest.fixture(scope="session")
def node_folder() -> Path:
    """A folder with the SDK, kept for later runs."""
    folder = ROOT / ".cache" / "node"
    if not (folder / "node_modules" / "openai").is_dir():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text('{"private": true}\n')
        command = ["npm", "install", "--silent", "--no-audit", "--no-fund", PACKAGE]
        subprocess.run(command, cwd=folder, check=True, timeout=110)
    return folder


def test_everything_an_sdk_user_does(node_folder: Path, mesh: Mesh, dead_url: str) -> None:
    arguments = {
        "url": mesh.url,
        "dead_url": dead_url,
        "model": DEFAULT_MODEL,
        "key": mesh.key,
        "other_model_key": mesh.create_key("--models", "another:model"),
        "slow_key": mesh.create_key("--rpm", "1"),
    }
    command = ["node", str(SCRIPT), str(node_folder), json.dumps(arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    del seen["version"]
    assert seen == {
        "models": [DEFAULT_MODEL],
        "chat": "stop",
        "stream_is_the_chat": True,
        "stream_usage": True,
        "stream_helper": True,
        "400": ["BadRequestError", 400, "temperature", "invalid_parameter"],
        "401": ["AuthenticationError", 401, None, "invalid_api_key"],
        "403": ["PermissionDeniedError", 403, "model", "model_not_allowed"],
        "404": ["NotFoundError", 404, "model", "model_not_found"],
        "429": ["RateLimitError", 429, None, "rate_limit_exceeded"],
        "503": ["InternalServerError", 503, None, "machine_offline"],
    }
