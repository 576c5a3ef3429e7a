"""Draws the next token of each row from its logits. Pure: the same rows give the same tokens.

What costs is memory: the logits of a step do not fit the cache of a core. So what changes single tokens is done here,
and what looks at all of them in one native pass (:mod:`runtime_server.native.sampling`).
"""

from __future__ import annotations

from collections.abc import Sequence as Rows
from dataclasses import dataclass

import numpy as np

from mantler.messages import LogprobsParams, SamplingParams
from runtime_server.backends.base import Floats
from runtime_server.constraints.mask import Mask
from runtime_server.engine.adjustments import Adjustments
from runtime_server.native import sampling

MAX_SCALE = 1e30
"""The inverse of the least temperature. Beyond it nothing changes, but infinity times nothing is not a number."""


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
        return bool(self.banned) or self.adjustments is not None


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
    if all(row.params.temperature == 0 and row.mask is None for row in rows):
        greedy: list[int] = logits.argmax(axis=1).tolist()
        # Where a logit is no number, numpy takes it for the greatest.
        if not np.isnan(logits[np.arange(len(rows)), greedy]).any():
            return greedy
    return sampling.draw(logits, [packed(row) for row in rows])


def packed(row: SamplingRow) -> bytes:
    """What the native sampler is told of a row."""
    params = row.params
    return sampling.packed_row(
        allowed=0 if row.mask is None else row.mask.address,
        seed=row.seed,
        top_p=params.top_p,
        min_p=params.min_p,
        scale=min(1 / params.temperature, MAX_SCALE) if params.temperature > 0 else 0.0,
        top_k=params.top_k,
        choice=row.choice,
        position=row.position,
    )
