"""The golden outputs of the default model, where this checkout has them beside it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mantler.messages import ChatMessage, Role

FOLDER = Path(__file__).parents[2] / "shared" / "golden"


@dataclass(frozen=True, slots=True)
class Conversation:
    """A conversation with its prompt and greedy answer, computed elsewhere in fp32."""

    messages: tuple[ChatMessage, ...]
    prompt: str
    prompt_ids: list[int]
    greedy_ids: list[int]
    greedy_text: str
    greedy_margin: list[float]
    """By how much the best logit beats the second best, per step."""

    def certain(self, margin: float) -> list[int]:
        """The answer up to the first step whose best two logits are closer than ``margin``."""
        close = (step for step, value in enumerate(self.greedy_margin) if value < margin)
        return self.greedy_ids[: next(close, len(self.greedy_ids))]


def conversations() -> list[Conversation]:
    """All conversations. Skips the test where the golden folder is absent."""
    text = _file("smollm2_135m_greedy.json").read_text(encoding="utf-8")
    return [_conversation(entry) for entry in json.loads(text)]


def _conversation(entry: dict[str, Any]) -> Conversation:
    messages = tuple(ChatMessage(Role(turn["role"]), turn["content"]) for turn in entry.pop("messages"))
    return Conversation(messages, **entry)


@dataclass(frozen=True, slots=True)
class Scored:
    """Log probabilities after every token of one conversation."""

    token_ids: list[int]
    prompt_length: int
    top_ids: NDArray[np.int64]
    """``[tokens, 64]``, best first."""
    top_logprobs: NDArray[np.float64]
    tail_logprob: NDArray[np.float64]
    """``[tokens]``, of all other tokens together."""


def scored() -> list[Scored]:
    """The same conversations with sampled answers. Skips the test where the golden folder is absent."""
    with np.load(_file("smollm2_135m_logprobs.npz")) as data:
        borders = np.cumsum(data["length"])[:-1]
        parts = [np.split(data[name], borders) for name in ("seq", "top_ids", "top_logprobs", "tail_logprob")]
        lengths = data["prompt_length"].tolist()
    return [
        Scored(seq.tolist(), length, ids.astype(np.int64), top.astype(np.float64), tail.astype(np.float64))
        for length, seq, ids, top, tail in zip(lengths, *parts, strict=True)
    ]


def divergence(logits: NDArray[np.float32], reference: Scored, position: int) -> float:
    """KL(reference || logits) over the 64 best tokens and all others together: a lower bound of the true one.

    Args:
        logits: ``[vocab_size]``, after the token at ``position``.
    """
    wide = logits.astype(np.float64)
    logprobs = wide - wide.max()
    logprobs -= np.log(np.exp(logprobs).sum())
    ours = logprobs[reference.top_ids[position]]
    ours_tail = np.log(max(1 - np.exp(ours).sum(), 1e-12))
    theirs, tail = reference.top_logprobs[position], reference.tail_logprob[position]
    return float((np.exp(theirs) * (theirs - ours)).sum() + np.exp(tail) * (tail - ours_tail))


def _file(name: str) -> Path:
    file = FOLDER / name
    if not file.exists():
        pytest.skip("the golden data is not beside this checkout (../shared/golden)")
    return file
