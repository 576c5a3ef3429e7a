from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mantler.messages import SamplingParams
from runtime_server.backends.base import Floats
from runtime_server.engine.adjustments import Adjustments
from runtime_server.engine.sampler import SamplingRow, sample

VOCAB_SIZE = 12
tokens = st.lists(st.integers(0, VOCAB_SIZE - 1), max_size=200)


def by_definition(logits: Floats, params: SamplingParams, prompt: list[int], output: list[int]) -> list[float]:
    biases, adjusted = dict(params.logit_bias), []
    for token_id, logit in enumerate(logits.tolist()):
        value = logit + biases.get(token_id, 0.0)
        if token_id in prompt or token_id in output:
            value = value / params.repetition_penalty if value > 0 else value * params.repetition_penalty
        value -= params.frequency_penalty * output.count(token_id)
        adjusted.append(value - params.presence_penalty * (token_id in output))
    return adjusted


@given(
    st.builds(
        SamplingParams,
        presence_penalty=st.sampled_from([0.0, 1.5, -2.0]),
        frequency_penalty=st.sampled_from([0.0, 0.25, -1.0]),
        repetition_penalty=st.sampled_from([1.0, 2.0, 0.5]),
        logit_bias=st.sampled_from([(), ((3, -100.0),), ((0, 1.0), (11, 100.0))]),
    ),
    tokens,
    tokens,
)
def test_adjusted_logits_are_the_definition(params: SamplingParams, prompt: list[int], output: list[int]) -> None:
    logits = np.linspace(-4, 4, VOCAB_SIZE, dtype=np.float32)
    expected = by_definition(logits, params, prompt, output)
    adjustments = Adjustments.of(params, prompt)
    if adjustments is not None:
        for token_id in output:
            adjustments.add(token_id)
        adjustments.apply(logits)
    np.testing.assert_allclose(logits, expected, rtol=1e-5, atol=1e-5)


def test_who_asks_for_nothing_has_no_adjustments() -> None:
    assert Adjustments.of(SamplingParams(temperature=0.5, top_k=3), [1, 2]) is None


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"logit_bias": ((0, -100.0),)}, 1),
        ({"logit_bias": ((2, 100.0),)}, 2),
        ({"presence_penalty": 2.0}, 1),
        ({"frequency_penalty": 1.0}, 1),
        ({"repetition_penalty": 10.0}, 1),
        ({"repetition_penalty": 1e-45}, 0),
    ],
)
def test_they_decide_what_is_drawn(temperature: float, options: dict[str, Any], expected: int) -> None:
    params = SamplingParams(temperature=temperature, top_k=1, **options)
    adjustments = Adjustments(params, [])
    adjustments.add(0)
    adjustments.add(0)
    logits = np.array([[3.0, 2.0, -50.0]], np.float32)
    assert sample(logits, [SamplingRow(params, 0, 0, 2, adjustments=adjustments)]) == [expected]


def test_a_ban_outdoes_a_bias() -> None:
    params = SamplingParams(temperature=0.0, logit_bias=((0, 100.0),))
    row = SamplingRow(params, 0, 0, 0, banned=(0,), adjustments=Adjustments(params, []))
    assert sample(np.zeros((1, 3), np.float32), [row]) == [1]
