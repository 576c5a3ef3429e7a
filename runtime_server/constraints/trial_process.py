"""Tries constraints where a hang or a crash harms nobody.

Run as ``python -m`` by :mod:`runtime_server.constraints.trial`. A question is the compiler's text; the answer is the
compiler's complaint, empty where there is none. Both are UTF-8.
"""

from __future__ import annotations

import os
from functools import partial

from llguidance import LLMatcher, LLTokenizer

from runtime_server.constraints.limits import parser_limits
from runtime_server.limited.worker import serve

NICENESS = 5
"""What serves requests goes first."""


def _complaint(tokenizer: LLTokenizer, grammar: bytes) -> bytes:
    text = grammar.decode("utf-8", "surrogatepass")
    matcher = LLMatcher(tokenizer, text, log_level=0, limits=parser_limits())
    return matcher.get_error().encode("utf-8", "surrogatepass")


if __name__ == "__main__":
    os.nice(NICENESS)
    # What hangs does so with any vocabulary, so the smallest one will do.
    serve(partial(_complaint, LLTokenizer("byte")))
