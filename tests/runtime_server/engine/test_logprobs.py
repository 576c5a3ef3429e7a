import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mantler.messages import LogprobsParams, SamplingParams, TokenCandidate, TokenLogprob
from runtime_server.engine.adjustments import Adjustments
from runtime_server.engine.held_tokens import HeldTokens
from runtime_server.engine.logprobs import LEAST, original, rank, rankings
from runtime_server.engine.sampler import SamplingRow, sample

GREEDY = SamplingParams(temperature=0.0)


@given(st.integers(0, 2**32 - 1), st.integers(1, 2000), st.sampled_from([0.0, 1.0, 30.0]), st.integers(0, 20))
def test_they_are_the_definition(seed: int, size: int, spread: float, top: int) -> None:
    generator = np.random.default_rng(seed)
    logits = (generator.standard_normal(size) * spread).round(1).astype(np.float32)
    token_id = int(generator.integers(size))
    wide = logits.astype(np.float64)
    expected = wide - wide.max() - np.log(np.exp(wide - wide.max()).sum())
    ranking = rank(logits, token_id, top)
    best = sorted(range(size), key=lambda i: (-logits[i], i))[:top]
    assert ranking.top_ids == tuple(best)
    np.testing.assert_allclose(ranking.top, expected[best], atol=1e-4)
    np.testing.assert_allclose(ranking.chosen, expected[token_id], atol=1e-4)
    assert max(ranking.chosen, *ranking.top, LEAST) <= 0


def test_greedy_chooses_the_first_of_the_likeliest() -> None:
    logits = np.array([[1.0, 7.0, 7.0, 0.0]], np.float32)
    rows = [SamplingRow(GREEDY, 0, 0, 0, logprobs=LogprobsParams(3))]
    asked = original(logits, rows)
    tokens = sample(logits, rows)
    ranking = rankings(asked, rows, tokens)[0]
    assert ranking.top_ids == (tokens[0], 2, 0)
    assert ranking.chosen == ranking.top[0]


def test_they_are_before_what_a_request_changes_and_only_where_asked_for() -> None:
    params = SamplingParams(temperature=0.0, logit_bias=((2, 100.0),))
    logits = np.array([[1.0, 7.0, 5.0]] * 3, np.float32)
    plain = SamplingRow(GREEDY, 0, 0, 0)
    changed = SamplingRow(params, 0, 0, 0, banned=(1,), adjustments=Adjustments(params, []), logprobs=LogprobsParams(1))
    rows = [plain, changed, plain]
    asked = original(logits, rows)
    tokens = sample(logits, rows)
    assert tokens == [1, 2, 1]
    ranked = rankings(asked, rows, tokens)
    assert ranked == {1: rank(np.array([1.0, 7.0, 5.0], np.float32), 2, 1)}
    assert ranked[1].top_ids == (1,)


@pytest.mark.parametrize("value", [-np.inf, np.nan])
def test_what_json_cannot_say_is_the_least(value: float) -> None:
    logits = np.array([0.0, value], np.float32)
    assert rank(logits, 1, 0).chosen == LEAST


def entry(token_id: int) -> TokenLogprob:
    return TokenLogprob(TokenCandidate(token_id, b"", -1.0))


def test_tokens_wait_for_the_last_of_their_text() -> None:
    held = HeldTokens()
    for token_id, (start, end) in enumerate([(0, 2), (2, 2), (2, 3), (2, 3), (3, 6), (6, 8)]):
        held.add(entry(token_id), start, end)
    assert held.release(1) == ()
    assert held.release(2) == (entry(0), entry(1))
    # The fifth has one character that is sent; of the sixth there is nothing.
    assert held.end(4) == (entry(2), entry(3), entry(4))
