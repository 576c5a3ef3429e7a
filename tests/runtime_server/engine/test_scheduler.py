"""What a step holds, and what is refused, ended and cancelled."""

import pytest

from mantler.errors import ErrorCode, MantlerError
from tests.fake_backend import continuation
from tests.runtime_server.engine.machine import Machine, check_answers, sequence, sizes


def test_a_lone_prompt_gets_large_chunks_that_end_with_blocks() -> None:
    machine = Machine()
    item = sequence(150, 3)
    machine.add(item)
    steps = [machine.step() for _ in range(5)]
    assert [sizes(step) for step in steps] == [[64], [64], [22], [1], [1]]
    assert [step.prompt_tokens for step in steps] == [64, 64, 22, 0, 0]
    check_answers([item])


def test_while_somebody_decodes_prompts_get_one_chunk_in_all() -> None:
    machine = Machine()
    decoding = sequence(4, 100)
    machine.add(decoding)
    machine.step()
    machine.add(sequence(39, 2, first=100), sequence(25, 2, first=200))
    for expected in ([1, 16], [1, 16], [1, 7, 8], [1, 1, 16], [1, 1]):
        before = decoding.output_tokens
        assert sizes(machine.step()) == expected
        assert decoding.output_tokens == before + 1
    machine.finish()


def test_several_prompts_share_a_step() -> None:
    machine = Machine(max_batch=8)
    items = [sequence(10, 2, first=100 * i) for i in range(8)]
    machine.add(*items)
    # 64 tokens: the seventh prompt gets one block of its ten tokens.
    assert sizes(machine.step()) == [10] * 6 + [4]
    machine.finish()
    check_answers(items)


def test_a_short_prompt_overtakes_a_long_one_that_goes_on() -> None:
    machine = Machine()
    machine.add(sequence(4, 100))
    machine.step()
    long, short = sequence(100, 2, first=100), sequence(8, 2, first=300)
    machine.add(long, short)
    assert sizes(machine.step()) == [1, 8, 8]
    assert (short.output_tokens, long.computed) == (1, 8)
    machine.finish()


def test_short_prompts_without_end_do_not_stop_a_long_one() -> None:
    machine = Machine(max_batch=4, chunk=8)
    long = sequence(80, 1, first=50)
    machine.add(sequence(4, 100), long)
    for i in range(24):
        machine.add(*(sequence(4, 1, first=1000 + 20 * i + 10 * j) for j in range(2)))
        machine.step()
    assert long.output_tokens == 1


def test_a_full_queue_refuses_and_changes_nothing() -> None:
    machine = Machine(max_batch=1, max_queue=1)
    scheduler = machine.scheduler
    machine.add(sequence(4, 4), sequence(4, 4))
    with pytest.raises(MantlerError) as refused:
        machine.add(sequence(4, 4))
    assert refused.value.code is ErrorCode.QUEUE_FULL
    assert (scheduler.waiting, scheduler.running) == (2, 0)
    machine.step()
    assert (scheduler.waiting, scheduler.running) == (1, 1)


def test_what_can_never_fit_is_refused_as_a_bug() -> None:
    machine = Machine(blocks=4)
    machine.add(sequence(8, 9))
    with pytest.raises(ValueError, match="cannot hold"):
        machine.add(sequence(8, 10))
    machine.finish()


def test_an_end_token_ends_the_sequence() -> None:
    answer = continuation(range(1, 5), 8)
    item = sequence(4, 8, end_ids=frozenset({answer[2]}))
    machine = Machine()
    machine.add(item)
    machine.finish()
    assert item.output_ids == answer[:3]


def test_a_cancelled_sequence_gives_its_token_to_nobody() -> None:
    machine = Machine()
    item = sequence(4, 8)
    machine.add(item)
    step = machine.begin()
    machine.scheduler.cancel(item)
    machine.scheduler.cancel(item)
    assert machine.pool.available < machine.pool.blocks, "blocks of a running step are free"
    assert machine.end(step) == []
    assert machine.step().chunks == []
    machine.check_free()


def test_drop_all_frees_every_block() -> None:
    machine = Machine(max_batch=2)
    items = [sequence(4, 8) for _ in range(3)]
    machine.add(*items)
    machine.begin()
    assert set(map(id, machine.scheduler.drop_all())) == set(map(id, items))
    assert machine.scheduler.idle
    machine.check_free()
