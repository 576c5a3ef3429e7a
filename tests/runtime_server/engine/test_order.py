"""Who goes first: priority, age and the choices of a request."""

import pytest

from mantler.errors import ErrorCode, MantlerError
from runtime_server.engine.scheduler import OVERTAKES
from runtime_server.engine.sequence import Sequence
from tests.runtime_server.engine.machine import GREEDY, Machine, check_answers, sequence


def order_of_start(machine: Machine) -> list[Sequence]:
    started = []
    while not machine.scheduler.idle:
        started += machine.step().admitted
    return started


def test_priority_goes_before_age_and_age_before_nothing() -> None:
    machine = Machine(max_batch=1)
    low, first, high, second = (sequence(4, 2, priority=p) for p in (1, 0, -1, 0))
    machine.add(low, first, high, second)
    assert order_of_start(machine) == [high, first, second, low]


def test_a_low_priority_is_overtaken_a_bounded_number_of_times() -> None:
    machine = Machine(max_batch=1)
    low = sequence(4, 1, priority=2)
    machine.add(sequence(4, 1), low)
    overtaken = 0
    while not low.output_tokens:
        machine.add(sequence(4, 1))
        machine.step()
        overtaken += 1
    assert overtaken <= 2 * OVERTAKES + 2


def test_the_lowest_priority_is_preempted_first() -> None:
    machine = Machine(blocks=14, max_batch=3)
    low, *others = (sequence(8, 30, first=100 * i, priority=p) for i, p in enumerate((5, 0, 0)))
    machine.add(low, *others)
    machine.step()
    while not machine.scheduler.preemptions:
        machine.step()
    assert (low.preemptions, *(item.preemptions for item in others)) == (1, 0, 0)
    machine.finish()
    check_answers([low, *others])


def choices(prompt: int, max_tokens: int, n: int, first: int = 1) -> list[Sequence]:
    return [
        Sequence(prompt_ids=range(first, first + prompt), sampling=GREEDY, seed=0, max_tokens=max_tokens, choice=choice)
        for choice in range(n)
    ]


def test_later_requests_come_between_the_choices_of_one() -> None:
    machine = Machine(max_batch=1)
    many, others = choices(4, 2, 4), [sequence(4, 2) for _ in range(2)]
    machine.scheduler.add(*many)
    machine.add(*others)
    assert order_of_start(machine) == [many[0], many[1], others[0], many[2], others[1], many[3]]


def test_choices_queue_together_or_not_at_all() -> None:
    machine = Machine(max_batch=2, max_queue=1)
    with pytest.raises(MantlerError) as refused:
        machine.scheduler.add(*choices(4, 2, 4))
    assert refused.value.code is ErrorCode.QUEUE_FULL
    assert machine.scheduler.idle
    machine.scheduler.add(*choices(4, 2, 3))
    machine.finish()
