"""Where memory runs short, the last in rank gives way."""

from runtime_server.engine.sequence import Sequence
from tests.runtime_server.engine.machine import Machine, check_answers, sequence


def test_the_last_in_rank_gives_way_and_its_tokens_stay_the_same() -> None:
    machine = Machine(blocks=14, max_batch=3)
    items = [sequence(8, 30, first=100 * i) for i in range(3)]
    machine.add(*items)
    finished: list[Sequence] = []
    while not machine.scheduler.idle:
        finished += [item.sequence for item in machine.end(machine.begin()) if item.finish]
    assert finished == items
    assert items[0].preemptions == 0
    assert machine.scheduler.preemptions == items[1].preemptions + items[2].preemptions > 0
    check_answers(items)
    machine.check_free()


def test_a_preempted_sequence_is_not_admitted_a_second_time_nor_cached() -> None:
    machine = Machine(blocks=14, max_batch=3)
    items = [sequence(8, 30, first=100 * i) for i in range(3)]
    machine.add(*items)
    admitted = []
    while not machine.scheduler.idle:
        admitted += machine.step().admitted
    assert admitted == items
    assert machine.scheduler.preemptions > 0
    assert [item.cached_tokens for item in items] == [0, 0, 0]


def test_nobody_is_admitted_only_to_be_preempted() -> None:
    machine = Machine(blocks=16, max_batch=4)
    running, late = sequence(36, 8), sequence(20, 4, first=100)
    machine.add(running)
    machine.step()
    machine.add(late)
    machine.finish()
    assert machine.scheduler.preemptions == 0


def test_prompts_that_block_each_other_are_resolved_in_order() -> None:
    machine = Machine(blocks=12, max_batch=3, chunk=4)
    items = [sequence(44, 4, first=100 * i) for i in range(3)]
    machine.add(*items)
    machine.finish()
    check_answers(items)
    assert items[0].preemptions == 0
