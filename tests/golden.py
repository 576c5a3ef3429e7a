"""The reference outputs of the default model, made with another implementation in fp32."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

FOLDER = Path(__file__).resolve().parent.parent.parent / "shared" / "golden"

needs_golden = pytest.mark.skipif(
    not FOLDER.is_dir(), reason="the reference outputs lie beside the project, in ../shared/golden, and are not there"
)


@dataclass(frozen=True, slots=True)
class Greedy:
    """A conversation and its greedy answer."""

    messages: list[dict[str, str]]
    prompt_ids: list[int]
    greedy_ids: list[int]
    greedy_margin: list[float]

    def certain(self, margin: float) -> list[int]:
        """The answer up to the first step whose best two logits are closer than ``margin``."""
        close = (step for step, value in enumerate(self.greedy_margin) if value < margin)
        return self.greedy_ids[: next(close, len(self.greedy_ids))]


@dataclass(frozen=True, slots=True)
class Scored:
    """Log probabilities after every token of one conversation."""

    token_ids: list[int]
    top_ids: NDArray[np.int64]
    """``[tokens, 64]``, best first."""
    top_logprobs: NDArray[np.float64]
    tail_logprob: NDArray[np.float64]
    """``[tokens]``, of all other tokens together."""


def greedy() -> list[Greedy]:
    """The 20 conversations."""
    entries = json.loads((FOLDER / "smollm2_135m_greedy.json").read_text())
    fields = ("messages", "prompt_ids", "greedy_ids", "greedy_margin")
    return [Greedy(**{field: entry[field] for field in fields}) for entry in entries]


def scored() -> list[Scored]:
    """The same conversations with sampled answers."""
    with np.load(FOLDER / "smollm2_135m_logprobs.npz") as data:
        borders = np.cumsum(data["length"])[:-1]
        parts = [np.split(data[name], borders) for name in ("seq", "top_ids", "top_logprobs", "tail_logprob")]
    return [
        Scored(seq.tolist(), ids.astype(np.int64), top.astype(np.float64), tail.astype(np.float64))
        for seq, ids, top, tail in zip(*parts, strict=True)
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
