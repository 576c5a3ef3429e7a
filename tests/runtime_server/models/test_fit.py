from hypothesis import given
from hypothesis import strategies as st

from runtime_server.models.fit import Fit
from runtime_server.models.footprint import Footprint

MB = 10**6
WIDE, NARROW = Footprint(2000 * MB, 100 * MB, 100_000, 16), Footprint(600 * MB, 100 * MB, 100_000, 16)


def test_the_sum() -> None:
    result = Fit(WIDE, streams=4, context=1000, usable_bytes=2600 * MB)
    assert result.cache_bytes == 4 * 1008 * 100_000
    assert result.total_bytes == 2100 * MB + result.cache_bytes
    assert result.fits


def test_fewer_streams_a_shorter_context_and_other_weights_are_offered() -> None:
    ways = list(Fit(WIDE, 8, 1600, 2600 * MB).ways_out({"int4": NARROW}))
    assert ways == [
        "--streams 3, of 1600 tokens each",
        "--context 624, for 8 streams",
        "--quantization int4, 1,980 MB in all",
    ]


def test_where_the_weights_alone_are_too_large_only_other_weights_help() -> None:
    assert list(Fit(WIDE, 8, 1600, 1000 * MB).ways_out({"int4": NARROW})) == [
        "--quantization int4 --streams 1 --context 1600"
    ]
    assert not list(Fit(WIDE, 8, 1600, 500 * MB).ways_out({"int4": NARROW}))


@given(st.integers(1, 64), st.integers(1, 8192), st.integers(0, 5000))
def test_what_is_offered_fits(streams: int, context: int, usable_mb: int) -> None:
    result = Fit(WIDE, streams, context, usable_mb * MB)
    if result.fits:
        return
    for way in result.ways_out({}):
        flag, value = way.replace(",", "").split()[:2]
        wishes = {"--streams": (int(value), context), "--context": (streams, int(value))}[flag]
        assert Fit(WIDE, *wishes, usable_mb * MB).fits
