"""The command ``llm`` against the real server."""

import json
import os
import subprocess
from collections.abc import Callable

import pytest

from tests.default_model import DEFAULT_MODEL
from tests.e2e.clients import RUN_S, python_with
from tests.e2e.conftest import Mesh

pytestmark = [pytest.mark.e2e, pytest.mark.model]

QUESTION = "What is the capital of France? Answer in one word."
SHORT = ("-o", "temperature", "0", "-o", "max_tokens", "40")
# The answers are short whatever the model says.
SCHEMA = {
    "type": "object",
    "properties": {"size": {"enum": ["small", "large"]}, "coastal": {"type": "boolean"}},
    "required": ["size", "coastal"],
    "additionalProperties": False,
}

Llm = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture(scope="module")
def llm(mesh: Mesh, tmp_path_factory: pytest.TempPathFactory) -> Llm:
    """Runs the command with arguments, with the mesh's model as ``local`` and a bad one as ``missing``."""
    python = python_with("llm", "llm>=0.27,<1")
    home = tmp_path_factory.mktemp("llm")
    models = [_model("local", DEFAULT_MODEL, mesh), _model("missing", "no:such", mesh)]
    # JSON is YAML, too.
    (home / "extra-openai-models.yaml").write_text(json.dumps(models))
    (home / "keys.json").write_text(json.dumps({"mantler": mesh.key}))

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(python), "-m", "llm", *arguments],
            env={**os.environ, "LLM_USER_PATH": str(home)},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=RUN_S,
            check=False,
        )

    return run


def _model(name: str, served: str, mesh: Mesh) -> dict[str, object]:
    return {
        "model_id": name,
        "model_name": served,
        "api_base": f"{mesh.url}/v1",
        "api_key_name": "mantler",
        "supports_schema": True,
        "supports_tools": True,
    }


def test_a_streamed_answer_is_the_whole_one(llm: Llm) -> None:
    streamed = llm("-m", "local", *SHORT, QUESTION)
    whole = llm("-m", "local", "--no-stream", *SHORT, QUESTION)
    assert (streamed.returncode, whole.returncode) == (0, 0), streamed.stderr + whole.stderr
    assert streamed.stdout.strip()
    assert streamed.stdout == whole.stdout


def test_a_schema_and_the_tokens_it_took(llm: Llm) -> None:
    done = llm("-m", "local", "--usage", "--schema", json.dumps(SCHEMA), *SHORT, QUESTION)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout).keys() == {"size", "coastal"}
    assert "input" in done.stderr
    assert "output" in done.stderr


def test_tools_are_offered(llm: Llm) -> None:
    function = "def weather(city: str) -> str:\n    return 'Sunny.'"
    done = llm("-m", "local", "--functions", function, *SHORT, QUESTION)
    assert done.returncode == 0, done.stderr


def test_a_conversation_goes_on(llm: Llm) -> None:
    assert llm("-m", "local", *SHORT, QUESTION).returncode == 0
    done = llm("--continue", *SHORT, "Why?")
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("-m", "missing"), "no:such"),
        (("-m", "local", "--key", "mk_live_nosuchkeynosuchkeynosuchkey00"), "API key"),
        (("-m", "local", "-o", "stop", "a" * 1025), "stop"),
    ],
)
def test_an_error_is_told(arguments: tuple[str, ...], said: str, llm: Llm) -> None:
    done = llm(*arguments, QUESTION)
    assert done.returncode == 1
    assert said in done.stderr
