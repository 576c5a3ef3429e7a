"""``mantler drill`` in a short form: runtimes are killed, frozen, cut off and restarted; clients see pauses at most."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.model]


def test_no_stream_breaks_and_no_token_is_lost(model_home: Path) -> None:
    command = [sys.executable, "-m", "mantler", "drill", "--json", "--home", str(model_home)]
    done = subprocess.run(
        [*command, "--seconds", "26", "--streams", "6", "--every", "5"],
        env={name: value for name, value in os.environ.items() if not name.startswith("MANTLER_")},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads(done.stdout)
    assert found["faults"] == 4
    assert found["resumed"] > 0
    assert (found["detection"]["count"], found["recovery"]["count"]) == (4, 4)
    assert (found["broken"], found["lost_tokens"], found["repeated_tokens"]) == (0, 0, 0)
