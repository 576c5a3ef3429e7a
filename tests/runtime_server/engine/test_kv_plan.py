import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_server.engine.kv_plan import FREE_MEMORY_SHARE, MIN_REQUEST_TOKENS, KvPlan, KvPlanError, plan_kv
from runtime_server.models.footprint import Footprint

GB = 10**9


def plan(
    *,
    bytes_per_token: int = 1000,
    max_batch: int = 4,
    context_length: int = 8192,
    max_request_tokens: int = 0,
    wanted_bytes: int = 0,
    free_bytes: int = 10 * GB,
    weight_bytes: int = 0,
) -> KvPlan:
    return plan_kv(
        footprint=Footprint(weight_bytes, 0, bytes_per_token, 16),
        max_batch=max_batch,
        context_length=context_length,
        max_request_tokens=max_request_tokens,
        wanted_bytes=wanted_bytes,
        usable_bytes=free_bytes,
    )


def test_plenty_of_memory_is_not_taken_beyond_what_can_be_used() -> None:
    assert plan() == KvPlan(4 * 512, 8192, 4 * 8192 * 1000)
    assert plan(wanted_bytes=100 * GB) == plan()
    assert plan(max_request_tokens=100).blocks == 4 * 7


def test_requests_share_what_there_is() -> None:
    # One request may fill all of it: there is no slot of a fixed size.
    assert plan(max_batch=32, wanted_bytes=10 * 8192 * 1000).max_request_tokens == 8192
    assert plan(max_batch=32, wanted_bytes=4096 * 1000) == KvPlan(256, 4096, 4096 * 1000)


def test_the_default_is_a_share_of_what_is_free() -> None:
    assert (
        plan(free_bytes=10 * 10**6).bytes <= FREE_MEMORY_SHARE * 10 * 10**6 < plan(free_bytes=10 * 10**6).bytes + 16000
    )


@pytest.mark.parametrize(
    ("wishes", "says"),
    [
        ({"max_request_tokens": 8193}, "context length is 8192"),
        ({"max_request_tokens": 8000, "wanted_bytes": 10**6}, "8000 tokens × 1000 bytes = 8 MB"),
        ({"wanted_bytes": 10**5}, "256 tokens"),
        ({"free_bytes": 0}, "0 MB are to be used"),
        (
            {"weight_bytes": 11 * GB},
            r"weights 11,000 MB \+ workspace 0 MB = 11,000 MB, but 10,000 MB of memory may be taken",
        ),
        (
            {"weight_bytes": 9 * GB, "wanted_bytes": 2 * GB, "max_batch": 1000},
            r"weights 9,000 MB \+ workspace 0 MB \+ 2,000 MB of keys and values = 11,000 MB, but 10,000 MB",
        ),
    ],
)
def test_what_does_not_fit_is_refused_with_the_arithmetic(wishes: dict[str, int], says: str) -> None:
    with pytest.raises(KvPlanError, match=says) as refused:
        plan(**wishes)
    assert refused.value.hint


def test_what_the_weights_leave_is_the_bound_of_the_default() -> None:
    made = plan(max_batch=1000, weight_bytes=9 * GB)
    assert 0.99 * GB < made.bytes <= GB


def test_a_model_with_a_short_context_needs_no_more_than_it() -> None:
    assert plan(context_length=100, wanted_bytes=112 * 1000).max_request_tokens == 100


@given(
    st.integers(1, 10**6),
    st.integers(1, 64),
    st.integers(1, 20_000),
    st.integers(0, 20_000),
    st.integers(0, 10 * GB),
    st.integers(0, 11 * GB),
)
def test_a_plan_keeps_its_promises(
    bytes_per_token: int,
    max_batch: int,
    context_length: int,
    max_request_tokens: int,
    wanted_bytes: int,
    weight_bytes: int,
) -> None:
    try:
        made = plan(
            bytes_per_token=bytes_per_token,
            max_batch=max_batch,
            context_length=context_length,
            max_request_tokens=max_request_tokens,
            wanted_bytes=wanted_bytes,
            weight_bytes=weight_bytes,
        )
    except KvPlanError:
        return
    assert made.bytes == made.blocks * 16 * bytes_per_token <= (wanted_bytes or FREE_MEMORY_SHARE * 10 * GB)
    assert made.bytes + weight_bytes <= 10 * GB
    assert min(MIN_REQUEST_TOKENS, context_length, max_request_tokens or GB) <= made.max_request_tokens
    assert made.max_request_tokens <= min(context_length, made.blocks * 16)
    assert max_request_tokens in (0, made.max_request_tokens)
