import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from runtime_server.backends.base import Chunk
from runtime_server.backends.cuda_plan import ALIGNMENT, Bounds, Planner, Shape, StepPlan, check

BLOCKS, BLOCK, LONGEST = 40, 256, 3000


@st.composite
def steps(draw: st.DrawFn, *, decodes: bool | None = None) -> tuple[int, list[Chunk]]:
    """How many places there are, and chunks whose blocks are their own."""
    places = draw(st.integers(1, 40))
    free = draw(st.permutations(range(BLOCKS)))
    chunks: list[Chunk] = []
    only_decodes = draw(st.booleans()) if decodes is None else decodes
    for _ in range(draw(st.integers(1, min(places, 10)))):
        follows = draw(st.none() | st.integers(0, places - 1))
        count = 1 if only_decodes or follows is not None else draw(st.integers(1, 700))
        start = draw(st.integers(0, LONGEST - count))
        needed = -(-(start + count) // BLOCK)
        if needed > len(free):
            break
        own, free = free[:needed], free[needed:]
        tokens = () if follows is not None else tuple(draw(st.integers(0, 9)) for _ in range(min(count, 3)))
        tokens += (0,) * (count - len(tokens)) if follows is None else ()
        wants = only_decodes or draw(st.booleans())
        chunks.append(Chunk(own, start, tokens, wants, follows))
    return places, chunks or [Chunk([0], 0, [1], True)]


def planner(places: int, *, captures: bool = True) -> Planner:
    return Planner(blocks=BLOCKS, block_tokens=BLOCK, longest=LONGEST, places=places, captures=captures)


@given(steps())
def test_a_plan_says_what_its_chunks_say(step: tuple[int, list[Chunk]]) -> None:
    places, chunks = step
    plan = planner(places).plan(chunks)
    starts, wanted = plan.input("row_starts"), iter(plan.input("logit_rows"))
    known = np.concatenate([np.arange(-places, 0), plan.input("tokens")])
    token_ids = known[plan.input("token_places")]
    for number, chunk in enumerate(chunks):
        first, end = starts[number : number + 2]
        expected = [chunk.follows - places] if chunk.follows is not None else list(chunk.token_ids)
        assert token_ids[first:end].tolist() == expected
        assert plan.input("past_tokens")[number] == chunk.start
        used = -(-(chunk.start + chunk.count) // BLOCK)
        assert plan.input("block_table")[number, :used].tolist() == list(chunk.block_ids)[:used]
        if chunk.wants_logits:
            assert next(wanted) == end - 1
    assert plan.rows == sum(chunk.wants_logits for chunk in chunks)


@given(steps(decodes=True))
def test_rows_that_nobody_needs_touch_nobody(step: tuple[int, list[Chunk]]) -> None:
    places, chunks = step
    plan = planner(places).plan(chunks)
    assert plan.capture is not None
    assert len(chunks) <= plan.shape.rows <= max(2 * len(chunks), 1)
    spare = slice(len(chunks), None)
    assert (plan.input("block_table")[spare] == BLOCKS).all()
    assert (plan.input("past_tokens")[spare] == 0).all()
    assert (np.diff(plan.input("row_starts")) == 1).all()
    assert plan.input("logit_rows").tolist() == list(range(plan.shape.rows))
    for row, chunk in enumerate(chunks):
        unused = plan.input("block_table")[row, len(chunk.block_ids) :]
        assert (unused == BLOCKS).all()


@given(st.lists(steps(), min_size=1, max_size=8))
def test_a_capture_is_the_same_whenever_it_is_used(items: list[tuple[int, list[Chunk]]]) -> None:
    one = planner(40)
    seen: dict[int, StepPlan] = {}
    for _, chunks in items:
        plan = one.plan(chunks)
        longest = max(chunk.start + chunk.count for chunk in chunks)
        assert plan.bounds.admits(Bounds(max(chunk.count for chunk in chunks), longest, longest))
        assert len(plan.integers) == plan.shape.length <= one.longest_buffer(10 * 700)
        if plan.capture is None:
            assert plan.bounds == Bounds(max(chunk.count for chunk in chunks), longest, longest)
            continue
        first = seen.setdefault(plan.capture.number, plan)
        assert (first.capture, first.bounds, first.shape) == (plan.capture, plan.bounds, plan.shape)
        assert 1 <= plan.capture.number <= one.captures()


def test_prompts_and_large_steps_run_without_a_capture() -> None:
    decode, prompt = Chunk([0], 5, [1], True), Chunk([1], 0, [1, 2], True)
    assert planner(4).plan([decode]).capture is not None
    assert planner(4, captures=False).plan([decode]).capture is None
    assert planner(4).plan([decode, prompt]).capture is None
    assert planner(4).plan([decode, Chunk([1], 0, [1], False)]).capture is None
    many = [Chunk([i], 5, [1], True) for i in range(BLOCKS)]
    assert planner(BLOCKS).plan(many).capture is not None
    large = Planner(blocks=300, block_tokens=BLOCK, longest=LONGEST, places=300)
    assert large.plan([Chunk([i], 5, [1], True) for i in range(129)]).capture is None
    assert planner(4).plan([Chunk([1], 0, [1, 2], False)]).shape.rows == 1
    with pytest.raises(ValueError, match="at least one chunk"):
        planner(4).plan([])


@given(steps(decodes=True), st.sampled_from(["longer", "shorter", "two tokens", "another shape"]))
def test_a_step_that_its_capture_does_not_hold_for_is_refused(step: tuple[int, list[Chunk]], wrong: str) -> None:
    places, chunks = step
    plan = planner(places).plan(chunks)
    check(plan)
    if wrong == "longer":
        plan.input("past_tokens")[0] = plan.bounds.longest
    elif wrong == "shorter":
        if plan.bounds.least == 0:
            return
        plan.input("past_tokens")[:] = 0
    elif wrong == "two tokens":
        plan.input("row_starts")[1:] += 1
    else:
        plan = StepPlan(Shape(1, 1, 99, 1), plan.integers, plan.bounds, plan.rows, plan.capture)
    with pytest.raises(RuntimeError, match="captured for"):
        check(plan)


@given(st.integers(1, 3000), st.integers(1, 130), st.integers(1, 50), st.integers(1, 130))
def test_inputs_are_aligned_and_lie_apart(tokens: int, sequences: int, width: int, rows: int) -> None:
    shape = Shape(tokens, sequences, width, rows)
    end = 0
    for name, size in shape.sizes().items():
        assert shape.offsets[name] % ALIGNMENT == 0
        assert shape.offsets[name] >= end
        end = shape.offsets[name] + int(np.prod(size))
    assert shape.length == end
