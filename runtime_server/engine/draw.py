"""Draws the next tokens of a step, from all logits of a row or from its likeliest tokens, whichever it takes. Pure.

A card hands out the likeliest tokens of each row. They are enough for a row that takes the very likeliest or draws
among its ``top_k``; every other row's logits come over whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from collections.abc import Sequence as Rows

import numpy as np

from runtime_server.backends.base import Candidates, Floats, Output
from runtime_server.engine.logprobs import Ranking, original, rankings
from runtime_server.engine.logprobs import of_candidates as ranking_of_candidates
from runtime_server.engine.sampler import SamplingRow, packed, sample
from runtime_server.native import sampling

Drawn = tuple[list[int], Mapping[int, Ranking]]
"""One token id per row, and the log probabilities of those that ask for them, by row."""


def draw(output: Output, rows: Rows[SamplingRow]) -> Drawn:
    """The next token of each row of ``output``."""
    candidates = output.candidates
    few = [] if candidates is None else [i for i, row in enumerate(rows) if _are_enough(row, candidates)]
    if candidates is None or not few:
        return _from_all(output.logits(range(len(rows))), rows) if rows else ([], {})
    tokens, ranked = _from_few(candidates, few, rows)
    rest = sorted(set(range(len(rows))) - set(few))
    if rest:
        others, others_ranked = _from_all(output.logits(rest), [rows[i] for i in rest])
        for place, i in enumerate(rest):
            tokens[i] = others[place]
        ranked |= {rest[place]: ranking for place, ranking in others_ranked.items()}
    return tokens, ranked


def _are_enough(row: SamplingRow, candidates: Candidates) -> bool:
    if row.changes_logits or row.mask is not None:
        return False
    if row.logprobs is not None and row.logprobs.top > candidates.count:
        return False
    return row.params.temperature == 0 or 0 < row.params.top_k <= candidates.count


def _from_all(logits: Floats, rows: Rows[SamplingRow]) -> Drawn:
    asked = original(logits, rows)
    tokens = sample(logits, rows)
    return tokens, rankings(asked, rows, tokens)


def _from_few(candidates: Candidates, few: Rows[int], rows: Rows[SamplingRow]) -> tuple[list[int], dict[int, Ranking]]:
    """Tokens of the rows ``few``, at their places among all; 0 elsewhere."""
    tokens = [0] * len(rows)
    drawn = [i for i in few if rows[i].params.temperature > 0]
    for i in few:
        tokens[i] = int(candidates.ids[i, 0])
    if drawn:
        # In the order of their ids, which decides between equal ones, as among all logits.
        order = np.argsort(candidates.ids[drawn], axis=1)
        ids = np.take_along_axis(candidates.ids[drawn], order, axis=1)
        values = np.ascontiguousarray(np.take_along_axis(candidates.values[drawn], order, axis=1))
        for i, own, place in zip(drawn, ids, sampling.draw(values, [packed(rows[i]) for i in drawn]), strict=True):
            tokens[i] = int(own[place])
    ranked = {
        i: ranking_of_candidates(candidates, i, tokens[i], asked.top)
        for i in few
        if (asked := rows[i].logprobs) is not None
    }
    return tokens, ranked
