"""A request is tried again for as long as that can help."""

from __future__ import annotations

import time

import pytest

from mantler.errors import ErrorCode, MantlerError
from mantler.mesh.machine import MachineId
from mantler.routing.progress import MAX_ATTEMPTS, MAX_FRUITLESS_ATTEMPTS, Progress

LOST = MantlerError(ErrorCode.MACHINE_OFFLINE, "gone")


def test_a_failure_is_remembered() -> None:
    progress = Progress(time.monotonic() + 60)
    progress.failed(LOST, MachineId("a"), 0)
    progress.failed(LOST, MachineId("b"), 0)
    assert (progress.error, progress.excluded, progress.retries) == (LOST, {"a", "b"}, 1)


def test_a_request_that_brings_machines_down_is_given_up() -> None:
    progress = Progress(time.monotonic() + 60)
    for _ in range(MAX_FRUITLESS_ATTEMPTS - 1):
        progress.began = True
        progress.failed(LOST, MachineId("a"), 0)
    progress.began = True
    with pytest.raises(MantlerError) as raised:
        progress.failed(LOST, MachineId("a"), 0)
    assert raised.value is LOST


@pytest.mark.parametrize("began", [False, True])
def test_one_that_waits_or_gets_on_has_more_attempts(began: bool) -> None:
    progress = Progress(time.monotonic() + 60)
    for attempt in range(1, MAX_ATTEMPTS):
        progress.began = began
        progress.failed(LOST, MachineId("a"), attempt if began else 0)
    with pytest.raises(MantlerError):
        progress.failed(LOST, MachineId("a"), MAX_ATTEMPTS)


def test_the_time_that_is_left_is_never_none() -> None:
    assert 59 < Progress(time.monotonic() + 60).remaining_s <= 60
    assert Progress(time.monotonic() - 60).remaining_s == 0.001
