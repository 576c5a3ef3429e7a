"""What is told at an address where nothing is served. Pure."""

from __future__ import annotations

import re

SERVED = (
    "POST /v1/chat/completions",
    "POST /v1/completions",
    "POST /v1/tokenize",
    "POST /v1/detokenize",
    "POST /mantler.v1.{service}/{method}",
    "GET /v1/models",
    "GET /v1/models/{id}",
    "GET /health",
    "GET /openapi.json",
    "GET /docs",
)

NOT_SERVED_YET = frozenset(
    {
        "assistants", "audio", "batches", "containers", "conversations", "embeddings", "evals",
        "files", "fine_tuning", "images", "moderations", "realtime", "responses", "threads", "uploads",
        "vector_stores", "videos",
    }
)  # fmt: skip
"""OpenAI's APIs, by the first part of their paths below ``/v1``."""

_API = re.compile(r"/v1/([a-z_]+)(/.*)?")
_BASE_IS_WRONG = re.compile(r"(/v1)?/(v1/)?((chat/)?completions|(de)?tokenize|models(/.*)?)/?")


def explain_nothing(path: str) -> str:
    """A sentence or two for a client that asked for ``path``, which is not served."""
    served = f"This server has {', '.join(SERVED[:-1])} and {SERVED[-1]}."
    known = _API.fullmatch(path)
    if known and known[1] in NOT_SERVED_YET:
        return f"The API /v1/{known[1]} is not served yet. {served}"
    if _BASE_IS_WRONG.fullmatch(path):
        return f"There is nothing at this address; the base URL of a client ends with one /v1. {served}"
    return f"There is nothing at this address. {served}"
