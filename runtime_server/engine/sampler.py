"""Draws the next token of each row from its logits. Pure: the same rows give the same tokens.

What costs is passes over the vocabulary, the exponentials above all. So a row that is cut sorts few tokens: those near
the likeliest one, and more of them only where these do not decide.
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mantler.messages import LogprobsParams, SamplingParams
from runtime_server.constraints.mask import Mask
from runtime_server.engine.adjustments import Adjustments
from runtime_server.engine.philox import uniform

DEPTHS = (6.0, 10.0, 15.0, 22.0, 33.0, np.inf)
"""How far below the likeliest token the tokens that are sorted lie at most, in natural logarithms of probability."""
BLOCK = 256
"""Weights are added up in blocks of this many before single ones are looked at."""
MAX_SCALE = 1e30
"""The inverse of the least temperature. Beyond it nothing changes, but infinity times nothing is not a number."""

Floats = NDArray[np.float32]


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
    mask: Mask | None = None
    """The tokens that a grammar allows here."""
    adjustments: Adjustments | None = None
    """Biases and penalties. They come before what must not be drawn."""
    logprobs: LogprobsParams | None = None
    """Asks for log probabilities, which :mod:`runtime_server.engine.logprobs` takes. They decide nothing."""

    @property
    def changes_logits(self) -> bool:
        """Whether :func:`sample` overwrites logits of this row."""
        return bool(self.banned) or self.mask is not None or self.adjustments is not None


def sample(logits: Floats, rows: Rows[SamplingRow]) -> list[int]:
    """One token id per row.

    Args:
        logits: ``[rows, vocab_size]``. Rows that change theirs are overwritten.
        rows: as many as logits has rows.
    """
    for i, row in enumerate(rows):
        if row.adjustments is not None:
            row.adjustments.apply(logits[i])
        if row.banned:
            logits[i, list(row.banned)] = -np.inf
        if row.mask is not None:
            np.minimum(logits[i], row.mask.ceiling, out=logits[i])
    drawn = [i for i, row in enumerate(rows) if row.params.temperature > 0]
    if not drawn:
        greedy: list[int] = logits.argmax(axis=1).tolist()
        return greedy
    numbers = uniform(
        np.array([rows[i].seed for i in drawn], np.uint64),
        np.array([rows[i].choice for i in drawn], np.uint64),
        np.array([rows[i].position for i in drawn], np.uint64),
    )
    number_of = dict(zip(drawn, numbers.tolist(), strict=True))
    # Row by row: the passes over one row stay in the processor's cache, those over all of them would not.
    return [
        draw(logits[i], row.params, number_of[i]) if i in number_of else int(logits[i].argmax())
        for i, row in enumerate(rows)
    ]


def draw(logits: Floats, params: SamplingParams, number: float) -> int:
    """The token at ``number`` in [0, 1) of the cumulative distribution that ``params`` leaves.

    Args:
        logits: ``[vocab_size]``
        params: with a temperature above 0.
    """
    row = Row(logits, params.temperature)
    if params.top_k == 0 and params.top_p == 1.0 and params.min_p == 0.0:
        return row.draw(number)
    ids, weights = kept(row, params)
    mass = np.cumsum(weights, dtype=np.float64)
    return int(ids[_at(mass, number * mass[-1])[0]])


class Row:
    """Logits as weights: probabilities in units of the likeliest token's.

    Args:
        logits: ``[vocab_size]``
        temperature: above 0.
    """

    def __init__(self, logits: Floats, temperature: float) -> None:
        self.logits = logits
        self.peak: np.float32 = logits.max()
        self._scale = np.float32(min(1 / temperature, MAX_SCALE))

    def above(self, depth: float) -> NDArray[np.int64]:
        """The tokens whose weight is at least ``exp(-depth)``."""
        if depth == np.inf:
            return np.arange(len(self.logits))
        return np.flatnonzero(self.logits >= self.peak - np.float32(depth) / self._scale)

    def sorted(self, ids: NDArray[np.int64]) -> NDArray[np.int64]:
        """Tokens given in the order of their ids: likeliest first; equal ones by their ids."""
        return ids[np.argsort(-self.logits[ids], kind="stable")]

    def weights(self, ids: NDArray[np.int64]) -> Floats:
        """Of some tokens."""
        return self._weights(self.logits[ids])

    def total(self) -> float:
        """The sum of all weights."""
        return float(self._weights(self.logits).sum())

    def draw(self, number: float) -> int:
        """The token at ``number`` of all, in the order of their ids."""
        logits = self.logits
        if missing := -len(logits) % BLOCK:
            logits = np.concatenate([logits, np.full(missing, -np.inf, np.float32)])
        blocks = self._weights(logits).reshape(-1, BLOCK)
        sums = np.cumsum(blocks.sum(axis=1), dtype=np.float64)
        block, rest = _at(sums, number * sums[-1])
        return block * BLOCK + _at(np.cumsum(blocks[block], dtype=np.float64), rest)[0]

    def _weights(self, logits: Floats) -> Floats:
        weights: Floats = logits - self.peak
        if self._scale != 1:
            with np.errstate(over="ignore"):  # at a tiny temperature all but the best go to minus infinity, rightly
                weights *= self._scale
        np.exp(weights, out=weights)
        return weights


def kept(row: Row, params: SamplingParams) -> tuple[NDArray[np.int64], Floats]:
    """Token ids that top_k, top_p and min_p leave, and their weights. Likeliest first; equal ones by their ids."""
    if params.top_k:
        ids = likeliest(row, params.top_k)
        weights = row.weights(ids)
        # The nucleus is a share of what top_k left.
        count = cut(weights, params, float(weights.sum(dtype=np.float64)))
        return ids[:count], weights[:count]
    total = row.total() if params.top_p < 1.0 else 0.0
    for depth in DEPTHS:
        ids = row.sorted(row.above(depth))
        if not len(ids):
            continue  # weights that are no numbers, of a damaged model; it must not fail the other requests
        weights = row.weights(ids)
        count = cut(weights, params, total)
        if count < len(ids) or depth == np.inf:
            return ids[:count], weights[:count]
    raise AssertionError("the last depth has every token")


def likeliest(row: Row, count: int) -> NDArray[np.int64]:
    """The ``count`` likeliest tokens, best first; equal ones by their ids. All of them where there are no more."""
    for depth in DEPTHS:
        ids = row.above(depth)
        if len(ids) >= count or depth == np.inf:
            return row.sorted(ids)[:count]
    raise AssertionError("the last depth has every token")


def cut(weights: Floats, params: SamplingParams, total: float) -> int:
    """How many of some tokens top_p and min_p leave.

    Args:
        weights: likeliest first, maybe not all of them.
        total: the sum of all weights.

    Returns: at least 1; ``len(weights)`` also where tokens that are not among ``weights`` may stay.
    """
    count = len(weights)
    if params.top_p < 1.0:
        mass = np.cumsum(weights, dtype=np.float64)
        count = min(count, 1 + int(np.searchsorted(mass, params.top_p * total)))
    if params.min_p > 0.0:
        count = min(count, int(np.searchsorted(-weights, -params.min_p * weights[0], side="right")))
    return max(1, count)


def _at(cumulative: NDArray[np.float64], target: float) -> tuple[int, float]:
    """Where ``target`` falls, and how far beyond what lies before that place."""
    # Rounding can carry the target up to the total itself, and a place without weight must not be drawn.
    last = int(np.searchsorted(cumulative, cumulative[-1]))
    place = min(int(np.searchsorted(cumulative, target, side="right")), last)
    return place, target - (float(cumulative[place - 1]) if place else 0.0)
