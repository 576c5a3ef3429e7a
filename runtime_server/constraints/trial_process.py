"""Tries constraints, one per line of standard input, where a hang or a crash harms nobody.

Run as ``python -m``. A line is a JSON string, the compiler's text; the answer is a line with a JSON string, the
compiler's complaint, empty where there is none. The process ends with its input, or at its limits.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import threading
import time

from llguidance import LLMatcher, LLTokenizer

from runtime_server.constraints.limits import (
    COMPILE_MEMORY_BYTES,
    COMPILE_STACK_BYTES,
    COMPILE_TIMEOUT_S,
    parser_limits,
)

NICENESS = 5
"""What serves requests goes first."""


def main() -> None:
    """Answers until the input ends."""
    os.nice(NICENESS)
    _limit(resource.RLIMIT_AS, COMPILE_MEMORY_BYTES)
    threading.stack_size(COMPILE_STACK_BYTES)
    # What hangs does so with any vocabulary, so the smallest one will do.
    tokenizer = LLTokenizer("byte")
    for line in sys.stdin:
        # Should nobody be left to end a process that hangs, the system does.
        _limit(resource.RLIMIT_CPU, int(time.process_time() + 2 * COMPILE_TIMEOUT_S) + 1)
        thread = threading.Thread(target=_answer, args=(tokenizer, json.loads(line)))
        thread.start()
        thread.join()


def _answer(tokenizer: LLTokenizer, grammar: str) -> None:
    matcher = LLMatcher(tokenizer, grammar, log_level=0, limits=parser_limits())
    sys.stdout.write(json.dumps(matcher.get_error()) + "\n")
    sys.stdout.flush()


def _limit(what: int, value: int) -> None:
    resource.setrlimit(what, (value, resource.getrlimit(what)[1]))


if __name__ == "__main__":
    main()
