"""Of two runtimes with one name, which one counts."""

from __future__ import annotations

import pytest

from mantler.mesh.directory import Directory
from mantler.mesh.machine import LoadReport, MachineId, ModelLoad
from mantler.messages import MachineInfo
from mantler.routing.registry import Registry
from mantler.routing.view import View
from tests.fake_runtime import model

NAME = MachineId("gpu1")
MODEL = model("smollm2:135m")
EARLIER = MachineInfo("gpu1", 1, 7, "earlier:1", (MODEL,))
LATER = MachineInfo("gpu1", 2, 1, "later:1", (MODEL,))


@pytest.fixture
def view() -> View:
    return View(Directory())


def address(view: View) -> str | None:
    """Where requests go."""
    machine = view.directory.get(NAME)
    seen = view.machine(NAME)
    assert seen is not None
    assert seen.online == (machine is not None)
    assert machine is None or machine.address == seen.address
    return machine.address if machine else None


def test_the_later_one_counts_in_whatever_order_they_come(view: View) -> None:
    view.registered(LATER, LATER.address, now_s=0, lease_until_s=2)
    view.registered(EARLIER, EARLIER.address, now_s=1, lease_until_s=9)
    assert address(view) == "later:1"
    other = View(Directory())
    other.registered(EARLIER, EARLIER.address, now_s=0, lease_until_s=9)
    other.registered(LATER, LATER.address, now_s=1, lease_until_s=3)
    assert address(other) == "later:1"


@pytest.mark.parametrize("way", ["left", "silent"])
def test_the_earlier_one_counts_once_the_later_is_gone(view: View, way: str) -> None:
    view.registered(LATER, LATER.address, now_s=0, lease_until_s=2)
    if way == "left":
        view.left(LATER, now_s=1)
    else:
        view.directory.expire(2)
    assert address(view) is None
    view.renewed(EARLIER, EARLIER.address, now_s=2, lease_until_s=4)
    assert address(view) == "earlier:1"
    view.reported(LoadReport(NAME, 1, 1, (ModelLoad(MODEL.id, 1, 0, 50),)), now_s=3, lease_until_s=5)
    view.directory.expire(4.5)
    assert address(view) == "earlier:1", "its reports renew its lease"
    view.registered(LATER, LATER.address, now_s=4.6, lease_until_s=7)
    assert address(view) == "later:1", "it is back"


def test_a_machine_is_where_it_was_last_reached(view: View) -> None:
    for place in ("here:1", "there:1", "here:1"):
        view.registered(EARLIER, place, now_s=0, lease_until_s=2)
        assert address(view) == place


def test_what_another_life_says_changes_nothing(view: View) -> None:
    view.registered(EARLIER, EARLIER.address, now_s=0, lease_until_s=2)
    view.registered(LATER, LATER.address, now_s=0, lease_until_s=2)
    view.reported(LoadReport(NAME, 2, 1, ()), now_s=0, lease_until_s=2)
    view.reported(LoadReport(NAME, 1, 99, (ModelLoad(MODEL.id, 1, 0, 50),)), now_s=1, lease_until_s=9)
    view.left(EARLIER, now_s=1)
    seen = view.machine(NAME)
    assert address(view) == "later:1"
    assert seen is not None
    assert seen.report == LoadReport(NAME, 2, 1, ())
    view.directory.expire(2)
    assert address(view) is None


def test_a_life_that_left_comes_again(view: View) -> None:
    for _ in range(3):
        view.registered(LATER, LATER.address, now_s=0, lease_until_s=2)
        assert address(view) == "later:1"
        view.left(LATER, now_s=1)
        assert address(view) is None


async def test_a_seat_counts_again_when_the_later_one_fell_silent(view: View) -> None:
    registry = Registry(view, gather_s=0)
    later = registry.join(LATER, LATER.address, "a token")
    registry.leave(LATER.id, later)
    earlier = registry.join(EARLIER, EARLIER.address, "a token")
    assert address(view) == "later:1", "it may come again before its lease ends"
    view.directory.expire(float("inf"))
    earlier.reported(LoadReport(NAME, 1, 1, ()))
    assert address(view) == "earlier:1"


def test_addresses_are_those_of_machines_that_are_online(view: View) -> None:
    view.registered(EARLIER, EARLIER.address, now_s=0, lease_until_s=2)
    assert view.addresses() == {"earlier:1"}
    view.left(EARLIER, now_s=1)
    assert view.addresses() == frozenset()
