"""Tokens drawn from the likeliest ones are those that all logits give."""

from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mantler.messages import LogprobsParams, SamplingParams
from runtime_server.backends.base import Candidates, Computed, Floats
from runtime_server.engine.adjustments import Adjustments
from runtime_server.engine.draw import draw
from runtime_server.engine.sampler import SamplingRow

VOCAB_SIZE, COUNT = 200, 16


class Card:
    """Hands out the likeliest tokens, and counts whose logits are asked for."""

    def __init__(self, logits: Floats) -> None:
        self._logits = logits
        self.fetched: list[int] = []
        ids = np.argsort(-logits, axis=1, kind="stable")[:, :COUNT]
        mass = np.log(np.exp(logits.astype(np.float64)).sum(axis=1)).astype(np.float32)
        self.candidates = Candidates(ids, np.take_along_axis(logits, ids, axis=1), mass)

    def logits(self, rows: Sequence[int]) -> Floats:
        self.fetched += rows
        return self._logits[list(rows)]


params = st.builds(
    SamplingParams,
    temperature=st.sampled_from([0.0, 0.0, 0.3, 1.0, 2.0]),
    top_k=st.sampled_from([0, 1, 3, COUNT, COUNT + 1, VOCAB_SIZE]),
    top_p=st.sampled_from([1.0, 0.9, 0.2]),
    min_p=st.sampled_from([0.0, 0.0, 0.3]),
    logit_bias=st.sampled_from([(), (), ((7, 5.0),)]),
)
rows = st.builds(
    lambda params, seed, position, banned, logprobs: SamplingRow(
        params, seed, 0, position, banned=banned, adjustments=Adjustments.of(params, []), logprobs=logprobs
    ),
    params,
    st.integers(0, 2**64 - 1),
    st.integers(0, 1000),
    st.sampled_from([(), (), (3,)]),
    st.sampled_from([None, LogprobsParams(top=0), LogprobsParams(top=5), LogprobsParams(top=20)]),
)


@given(st.lists(rows, min_size=1, max_size=8), st.integers(0, 2**32 - 1))
def test_it_does_not_matter_where_a_token_is_drawn_from(asked: list[SamplingRow], seed: int) -> None:
    # Halves: many are equal, as with numbers of few bits.
    logits = (np.random.default_rng(seed).normal(scale=6, size=(len(asked), VOCAB_SIZE)).round() / 2).astype(np.float32)
    expected, expected_ranked = draw(Computed(logits.copy()), asked)
    card = Card(logits)
    tokens, ranked = draw(card, asked)
    assert tokens == expected
    assert ranked.keys() == expected_ranked.keys()
    for row, ranking in ranked.items():
        assert ranking.top_ids == expected_ranked[row].top_ids
        assert [ranking.chosen, *ranking.top] == pytest.approx(
            [expected_ranked[row].chosen, *expected_ranked[row].top], abs=1e-4
        )
    assert card.fetched == [i for i, row in enumerate(asked) if not few_are_enough(row)]


def few_are_enough(row: SamplingRow) -> bool:
    changed = row.banned or row.params.logit_bias or (row.logprobs is not None and row.logprobs.top > COUNT)
    return not changed and (row.params.temperature == 0 or 0 < row.params.top_k <= COUNT)


def test_a_step_of_prompts_alone_draws_nothing() -> None:
    assert draw(Computed(np.zeros((0, VOCAB_SIZE), np.float32)), []) == ([], {})
