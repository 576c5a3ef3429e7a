"""Times a new user's way: from ``make up`` in a fresh clone to the first answer, and a second start.

Home and package cache are empty folders, so everything is downloaded. It needs git, make and the standard library.

Example:
  python bench/first_answer.py
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
STOP_S = 60.0


@contextmanager
def up(clone: Path, home: Path, http: str, runtime: str) -> Iterator[Iterator[str]]:
    """``make up``; yields its lines. Ctrl-C ends it."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MANTLER_", "PYTHON"))}
    process = subprocess.Popen(
        ["make", "up", f"ARGS=--http {http} --runtime {runtime} --grpc 127.0.0.1:0"],
        cwd=clone,
        env={**clean, "HOME": str(home), "PIP_NO_CACHE_DIR": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )
    assert process.stdout is not None
    try:
        yield iter(process.stdout)
    finally:
        os.killpg(process.pid, signal.SIGINT)
        process.communicate(timeout=STOP_S)


def key_of(lines: Iterator[str]) -> str:
    """Reads until the server is up. Returns the key of a first start, or an empty string."""
    key, seen = "", []
    for line in lines:
        seen.append(line)
        if found := re.search(r"^  key\s+(mk_live_\S+)", line):
            key = found[1]
        if "Ctrl-C stops it" in line:
            return key
    sys.exit("make up ended before it served:\n" + "".join(seen[-20:]))


def ask(http: str, key: str) -> str:
    """The answer to the question that `mantler up` shows."""
    question = {"role": "user", "content": "Why is the sky blue?"}
    body = {"model": "smollm2:135m", "temperature": 0, "messages": [question]}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"http://{http}/v1/chat/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=60) as response:
        text: str = json.load(response)["choices"][0]["message"]["content"]
    return text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--http", default="127.0.0.1:8080")
    parser.add_argument("--runtime", default="127.0.0.1:50051")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        clone, home = Path(folder, "mantler"), Path(folder, "home")
        home.mkdir()
        subprocess.run(["git", "clone", "--quiet", str(ROOT), str(clone)], check=True)
        started = time.monotonic()
        with up(clone, home, given.http, given.runtime) as lines:
            key = key_of(lines)
            served = time.monotonic() - started
            answer = ask(given.http, key)
            answered = time.monotonic() - started
        started = time.monotonic()
        with up(clone, home, given.http, given.runtime) as lines:
            key_of(lines)
            again = time.monotonic() - started
    print(f"first make up: serves after {served:.1f} s, first answer after {answered:.1f} s: {answer[:60]!r}")
    print(f"second make up: serves after {again:.1f} s")


if __name__ == "__main__":
    main()
