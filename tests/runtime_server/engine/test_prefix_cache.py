"""What was computed for the same beginning is computed once."""

import pytest

from runtime_server.engine.sequence import Sequence
from tests.runtime_server.engine.machine import GREEDY, Machine, check_answers, sequence, sizes


def test_a_repeated_prompt_computes_its_last_block_only() -> None:
    machine = Machine()
    first, second = sequence(40, 4), sequence(40, 4)
    machine.add(first)
    machine.finish()
    machine.add(second)
    assert sizes(machine.step()) == [4]
    machine.finish()
    assert (first.cached_tokens, second.cached_tokens) == (0, 36)
    assert machine.scheduler.cached_tokens == 36
    check_answers([first, second])


def test_an_answer_is_cached_for_the_next_turn() -> None:
    machine = Machine()
    first = sequence(10, 11)
    machine.add(first)
    machine.finish()
    turn = Sequence(prompt_ids=[*first.token_ids, 7, 8, 9], sampling=GREEDY, seed=0, max_tokens=3)
    machine.add(turn)
    machine.finish()
    # The last token of the answer was never computed: 20 of 21 tokens, five blocks.
    assert turn.cached_tokens == 20
    check_answers([turn])


def test_sequences_that_come_together_compute_a_common_prefix_once() -> None:
    machine = Machine(max_batch=8)
    prefix = list(range(100))
    items = [Sequence(prompt_ids=[*prefix, 200 + i, 250 + i], sampling=GREEDY, seed=0, max_tokens=5) for i in range(8)]
    machine.add(*items)
    machine.finish()
    computed = sum(len(chunk.token_ids) for step in machine.backend.steps for chunk in step)
    assert computed == 100 + 8 * (2 + 4)
    assert [item.cached_tokens for item in items] == [0] + [100] * 7
    check_answers(items)


def test_running_sequences_hold_the_same_blocks() -> None:
    machine = Machine()
    first, second = sequence(20, 20), sequence(20, 20)
    machine.add(first)
    machine.step()
    machine.add(second)
    machine.step()
    # The fifth block held the last token of the prompt and was computed twice; one of the two was dropped.
    assert second.block_ids[:5] == first.block_ids[:5]
    assert [machine.pool.holders(block) for block in first.block_ids] == [2] * 5 + [1]
    machine.finish()
    check_answers([first, second])


@pytest.mark.parametrize(("one", "other", "cached"), [("a", "a", 36), ("a", "b", 0), ("a", None, 0), (None, None, 36)])
def test_a_salt_keeps_prefixes_apart(one: str | None, other: str | None, cached: int) -> None:
    machine = Machine()
    machine.add(sequence(40, 2, salt=one))
    machine.finish()
    item = sequence(40, 2, salt=other)
    machine.add(item)
    machine.finish()
    assert item.cached_tokens == cached
    check_answers([item])


def test_the_cache_gives_way_to_what_runs() -> None:
    machine = Machine(blocks=10)
    for i in range(5):
        item = sequence(30, 8, first=100 * i)
        machine.add(item)
        machine.finish()
        check_answers([item])
    assert machine.pool.cached > 0
    again = sequence(30, 8, first=400)
    machine.add(again)
    machine.finish()
    assert again.cached_tokens == 28
