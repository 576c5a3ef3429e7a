"""Log probabilities as OpenAI's objects. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from mantler.messages import TokenCandidate, TokenLogprob


def logprobs_object(entries: Iterable[TokenLogprob]) -> dict[str, Any]:
    """``logprobs`` of a choice of a chat completion, or of a piece of it."""
    return {
        "content": [
            {**_candidate(entry.chosen), "top_logprobs": [_candidate(each) for each in entry.top]} for entry in entries
        ],
        "refusal": None,
    }


def token_text(candidate: TokenCandidate) -> str:
    """A token as text. Bytes that are no whole character are written ``\\xe2``: only ``bytes`` is exact then."""
    return candidate.token_bytes.decode("utf-8", "backslashreplace")


def _candidate(candidate: TokenCandidate) -> dict[str, Any]:
    return {"token": token_text(candidate), "logprob": candidate.logprob, "bytes": list(candidate.token_bytes)}
