"""Draws the next token of each row from its logits. Pure: the same rows give the same tokens."""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mantler.messages import SamplingParams
from runtime_server.engine.philox import uniform

FIRST_CANDIDATES = 256
"""How many of the likeliest tokens are sorted at first. Most distributions are cut within them."""


@dataclass(frozen=True, slots=True)
class SamplingRow:
    """What decides one row's token, besides its logits."""

    params: SamplingParams
    seed: int
    """64 bits. Given even where the request named none."""
    choice: int
    position: int
    """How many tokens the choice has so far."""
    banned: tuple[int, ...] = ()
    """Tokens that must not be drawn here."""


def sample(logits: NDArray[np.float32], rows: Rows[SamplingRow]) -> list[int]:
    """One token id per row.

    Args:
        logits: ``[rows, vocab_size]``. Banned entries are overwritten.
        rows: as many as logits has rows.
    """
    for i, row in enumerate(rows):
        if row.banned:
            logits[i, list(row.banned)] = -np.inf
    tokens: list[int] = logits.argmax(axis=1).tolist()
    drawn = [i for i, row in enumerate(rows) if row.params.temperature > 0]
    if drawn:
        numbers = uniform(
            np.array([rows[i].seed for i in drawn], np.uint64),
            np.array([rows[i].choice for i in drawn], np.uint64),
            np.array([rows[i].position for i in drawn], np.uint64),
        )
        for i, number in zip(drawn, numbers.tolist(), strict=True):
            tokens[i] = draw(logits[i], rows[i].params, number)
    return tokens


def draw(logits: NDArray[np.float32], params: SamplingParams, number: float) -> int:
    """The token at ``number`` in [0, 1) of the cumulative distribution that ``params`` leaves.

    Args:
        logits: ``[vocab_size]``
        params: with a temperature above 0.
    """
    with np.errstate(over="ignore"):  # at a tiny temperature all but the best logits go to minus infinity, rightly
        weights = np.exp((logits - logits.max()) / np.float32(params.temperature))
    if params.top_k == 0 and params.top_p == 1.0 and params.min_p == 0.0:
        return _at(np.cumsum(weights, dtype=np.float64), number)
    candidates = kept(weights, params)
    return int(candidates[_at(np.cumsum(weights[candidates], dtype=np.float64), number)])


def kept(weights: NDArray[np.float32], params: SamplingParams) -> NDArray[np.int64]:
    """Token ids that top_k, top_p and min_p leave, likeliest first; equal ones in the order of their ids.

    Args:
        weights: ``[vocab_size]``, unnormalised probabilities.
    """
    limit = min(params.top_k or len(weights), len(weights))
    width = limit if params.top_k else min(limit, FIRST_CANDIDATES)
    while True:
        ids = _likeliest(weights, width)
        mass = np.cumsum(weights[ids], dtype=np.float64)
        # With top_k the nucleus is a share of what top_k left.
        whole = mass[-1] if params.top_k else weights.sum(dtype=np.float64)
        in_nucleus = 1 + int(np.searchsorted(mass, params.top_p * whole)) if params.top_p < 1.0 else len(weights)
        likely = int(np.searchsorted(-weights[ids], -params.min_p * weights[ids[0]], side="right"))
        if width == limit or likely < width or in_nucleus <= width:
            return ids[: max(1, min(in_nucleus, likely))]
        width = min(limit, width * 8)


def _likeliest(weights: NDArray[np.float32], width: int) -> NDArray[np.int64]:
    """The ``width`` likeliest ids, sorted. Ties go to the lower id, so the order does not depend on ``width``."""
    if width < len(weights):
        border = np.partition(weights, len(weights) - width)[len(weights) - width]
        ids = np.flatnonzero(weights >= border)
    else:
        ids = np.arange(len(weights))
    return ids[np.argsort(-weights[ids], kind="stable")][:width]


def _at(cumulative: NDArray[np.float64], number: float) -> int:
    # Rounding can carry number * total up to the total itself, and a token without weight must not be drawn.
    last = int(np.searchsorted(cumulative, cumulative[-1]))
    return min(int(np.searchsorted(cumulative, number * cumulative[-1], side="right")), last)
