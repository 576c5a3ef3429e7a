"""Log probabilities of the tokens that were drawn, in the model's own distribution. Pure.

They are those of the logits as the backend gives them, taken before biases, penalties and masks change these.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from runtime_server.backends.base import Candidates, Floats
from runtime_server.engine.sampler import SamplingRow

LEAST = -9999.0
"""Stands for the logarithm of nothing, which JSON cannot say. OpenAI's number."""


@dataclass(frozen=True, slots=True)
class Ranking:
    """How likely the token that was drawn is, and the likeliest tokens, best first; equal ones by their ids."""

    chosen: float
    """Natural logarithm of a probability, from -9999 to 0."""
    top_ids: tuple[int, ...] = ()
    top: tuple[float, ...] = ()


def original(logits: Floats, rows: Rows[SamplingRow]) -> dict[int, Floats]:
    """The logits of the rows that ask for log probabilities, by row; copies where drawing will change them.

    Args:
        logits: ``[rows, vocab_size]``, before anything is drawn.
    """
    return {
        i: logits[i].copy() if row.changes_logits else logits[i]
        for i, row in enumerate(rows)
        if row.logprobs is not None
    }


def rankings(asked: Mapping[int, Floats], rows: Rows[SamplingRow], tokens: Rows[int]) -> dict[int, Ranking]:
    """The log probabilities of what was drawn, by row.

    Args:
        asked: of :func:`original`.
        tokens: one per row.
    """
    return {i: rank(logits, tokens[i], _top(rows[i])) for i, logits in asked.items()}


def rank(logits: Floats, token_id: int, top: int) -> Ranking:
    """Where a token stands among all.

    Args:
        logits: ``[vocab_size]``
        top: how many of the likeliest tokens to name.
    """
    peak = logits.max()
    mass = math.log(float(np.exp(logits - peak).sum()))
    ids = likeliest(logits, top).tolist() if top else []
    chosen, *others = (_at_least(float(value) - mass) for value in logits[[token_id, *ids]] - peak)
    return Ranking(chosen, tuple(ids), tuple(others))


def of_candidates(candidates: Candidates, row: int, token_id: int, top: int) -> Ranking:
    """Where a token stands among all, which is one of the row's candidates.

    Args:
        top: how many of the likeliest tokens to name, at most all candidates.
    """
    ids, values = candidates.ids[row], candidates.values[row]
    # Equal ones by their ids, as where all logits are at hand.
    order = np.lexsort((ids, -values))[:top]
    mass = float(candidates.logsumexp[row])
    chosen = float(values[ids == token_id][0])
    others = tuple(_at_least(float(value) - mass) for value in values[order])
    return Ranking(_at_least(chosen - mass), tuple(ids[order].tolist()), others)


def likeliest(logits: Floats, count: int) -> NDArray[np.int64]:
    """The ``count`` likeliest tokens, best first; equal ones by their ids. All of them where there are no more."""
    least = np.partition(logits, -count)[-count] if count < len(logits) else -np.inf
    ids = np.flatnonzero(logits >= least)
    return ids[np.argsort(-logits[ids], kind="stable")][:count]


def _top(row: SamplingRow) -> int:
    return 0 if row.logprobs is None else row.logprobs.top


def _at_least(logprob: float) -> float:
    # In this order, what is not a number becomes the least as well.
    return logprob if logprob > LEAST else LEAST
