"""The native sampler against its definition in float64."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from runtime_server.native import sampling
from tests.philox import uniform

Floats = NDArray[np.float32]

ROUNDING = 1e-5
"""Of shares of the whole, by fp32."""


@dataclass(frozen=True)
class Options:
    temperature: float = 1.0
    top_k: int = 0
    top_p: float = 1.0
    min_p: float = 0.0

    def pack(self, seed: int, position: int, allowed: NDArray[np.uint8] | None = None) -> bytes:
        return sampling.packed_row(
            allowed=0 if allowed is None else allowed.ctypes.data,
            seed=seed,
            top_p=self.top_p,
            min_p=self.min_p,
            scale=1 / self.temperature if self.temperature else 0.0,
            top_k=self.top_k,
            choice=0,
            position=position,
        )


def distribution(logits: Floats, options: Options) -> tuple[list[int], NDArray[np.float64]]:
    """What may be drawn, in the order it is drawn from, and the probabilities."""
    wide = np.nan_to_num(logits.astype(np.float64), nan=-np.inf, neginf=-np.inf)
    weights = np.exp((wide - wide.max()) / options.temperature)
    if (options.top_k, options.top_p, options.min_p) == (0, 1.0, 0.0):
        return list(range(len(logits))), weights / weights.sum()
    order = np.lexsort((np.arange(len(logits)), -wide))
    if options.top_k:
        order = order[: options.top_k]
    kept = weights[order]
    sums = np.cumsum(kept)
    nucleus = 1 + int(np.searchsorted(sums, options.top_p * sums[-1])) if options.top_p < 1 else len(kept)
    count = max(1, min(nucleus, int((kept >= options.min_p).sum())))
    return order[:count].tolist(), kept[:count] / kept[:count].sum()


def may_be_drawn(token: int, number: float, logits: Floats, options: Options) -> bool:
    """Whether ``number`` falls on ``token``, but for rounding."""
    ids, shares = distribution(logits, options)
    if token not in ids:
        return False
    place = ids.index(token)
    end = float(shares[: place + 1].sum())
    share = float(shares[place])
    return share > 0 and end - share - ROUNDING <= number <= end + ROUNDING


def variants(options: Options) -> list[Options]:
    """Cuts that rounding cannot tell from each other."""
    return [
        replace(options, top_p=top_p, min_p=options.min_p * factor)
        for top_p in {options.top_p, min(1.0, options.top_p * (1 + 1e-6)), options.top_p * (1 - 1e-6)}
        for factor in (1, 1 - 1e-6, 1 + 1e-6)
        if top_p < 1 or options.top_p == 1
    ]


@st.composite
def adversarial(draw: st.DrawFn) -> Floats:
    """Logits with ties, of any spread, with tokens that cannot come and numbers that are none."""
    size = draw(st.sampled_from([1, 2, 15, 16, 17, 255, 256, 257, 700, 3000]))
    spread = draw(st.sampled_from([0.0, 0.01, 1.0, 5.0, 30.0, 1e30, 3e37]))
    generator = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    logits = (generator.standard_normal(size) * spread).astype(np.float32)
    if draw(st.booleans()) and spread <= 30:
        logits = logits.round(1)
    for value in draw(st.lists(st.sampled_from([-np.inf, np.nan]), max_size=2)):
        logits[generator.random(size) < draw(st.sampled_from([0.01, 0.5, 0.99]))] = value
    logits[generator.integers(size)] = draw(st.sampled_from([0.0, -0.0, 3.0]))
    return logits


options_strategy = st.builds(
    Options,
    temperature=st.sampled_from([0.05, 0.8, 1.0, 2.0]),
    top_k=st.sampled_from([0, 0, 1, 2, 40, 300, 2**31 - 1]),
    top_p=st.sampled_from([1.0, 0.999, 0.95, 0.5, 0.01, 0.0]),
    min_p=st.sampled_from([0.0, 0.01, 0.3, 1.0]),
)


@given(adversarial(), options_strategy, st.integers(0, 2**64 - 1), st.booleans(), st.data())
def test_a_number_falls_on_the_token_of_the_definition(
    logits: Floats, options: Options, seed: int, masked: bool, data: st.DataObject
) -> None:
    allowed = np.ones(len(logits), bool)
    if masked:
        generator = np.random.default_rng(seed)
        allowed = generator.random(len(logits)) < data.draw(st.sampled_from([0.02, 0.5, 0.98]))
        allowed[np.flatnonzero(np.isfinite(logits))[0]] = True
    bits = np.packbits(allowed, bitorder="little")
    count = 5
    rows = [options.pack(seed, position, bits if masked else None) for position in range(count)]
    drawn = sampling.draw(np.stack([logits] * count), rows)
    numbers = uniform(
        np.full(count, seed, np.uint64), np.zeros(count, np.uint64), np.arange(count, dtype=np.uint64)
    ).tolist()
    left = np.where(allowed, logits, np.float32(-np.inf))
    for token, number in zip(drawn, numbers, strict=True):
        assert any(may_be_drawn(token, number, left, variant) for variant in variants(options))


@given(adversarial())
def test_no_temperature_takes_the_first_of_the_likeliest(logits: Floats) -> None:
    expected = int(np.nan_to_num(logits, nan=-np.inf, neginf=-np.inf).argmax())
    assert sampling.draw(logits[None], [Options(temperature=0).pack(0, 0)]) == [expected]


@pytest.mark.parametrize(
    "options",
    [Options(), Options(0.8, top_p=0.95), Options(top_k=10), Options(2.0, min_p=0.1), Options(0.7, 20, 0.9, 0.02)],
    ids=str,
)
def test_tokens_come_as_often_as_they_should(options: Options) -> None:
    logits = (np.random.default_rng(3).standard_normal(40) * 1.5).astype(np.float32)
    count = 20_000
    rows = [options.pack(11, position) for position in range(count)]
    times = np.bincount(sampling.draw(np.tile(logits, (count, 1)), rows), minlength=40)
    ids, shares = distribution(logits, options)
    assert times[ids].sum() == count
    expected = shares * count
    deviation = float(((times[ids] - expected) ** 2 / expected).sum())
    # Chi-square has this mean and variance; the numbers are fixed, so this cannot flake.
    degrees = len(ids) - 1
    assert deviation < degrees + 4 * (2 * degrees) ** 0.5


@given(st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1))
def test_equal_tokens_show_the_number(seed: int, position: int) -> None:
    number = uniform(np.array([seed], np.uint64), np.array([0], np.uint64), np.array([position], np.uint64))[0]
    assert sampling.draw(np.zeros((1, 4096), np.float32), [Options().pack(seed, position)]) == [int(number * 4096)]


@pytest.mark.parametrize("value", [np.nan, -np.inf, np.inf])
@pytest.mark.parametrize("options", [Options(), Options(0), Options(top_k=3), Options(top_p=0.5), Options(min_p=0.1)])
def test_without_a_distribution_it_is_the_first_token_that_is_allowed(value: float, options: Options) -> None:
    logits = np.full((2, 300), value, np.float32)
    bits = np.packbits(np.arange(300) >= 290, bitorder="little")
    assert sampling.draw(logits, [options.pack(1, 0), options.pack(1, 0, bits)]) == [0, 290]


@pytest.mark.parametrize("logits", [np.zeros((2, 5), np.float32), np.zeros((1, 0), np.float32), np.zeros((1, 5))])
def test_logits_of_another_shape_or_type_are_refused(logits: Floats) -> None:
    with pytest.raises(ValueError, match="cannot draw 1 tokens from"):
        sampling.draw(logits, [Options().pack(0, 0)])
