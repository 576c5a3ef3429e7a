"""Requests over several machines that come, go, fall silent and fail."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import AsyncExitStack, aclosing
from dataclasses import replace

import pytest

from mantler import messages as m
from mantler.errors import ErrorCode, MantlerError
from mantler.routing import static
from mantler.routing.client import MeshClient, connected
from tests.fake_runtime import FakeRuntime, Gate, Said, Script, echo, failing, model

MODEL = "smollm2:135m"
WORDS = "one two three four five six"


class Mesh:
    """Three fake machines and a client of them."""

    def __init__(self, machines: list[FakeRuntime], client: MeshClient) -> None:
        self.machines = machines
        self.client = client

    def script(self, script: Script) -> None:
        for machine in self.machines:
            machine.script = script

    def busy(self) -> FakeRuntime:
        [machine] = [machine for machine in self.machines if machine.active]
        return machine


@pytest.fixture
async def mesh(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Mesh]:
    monkeypatch.setattr(static, "POLL_S", 0.05)
    monkeypatch.setattr(static, "POLL_TIMEOUT_S", 0.5)
    monkeypatch.setattr(static, "LEASE_S", 1.0)
    async with AsyncExitStack() as stack:
        machines = [await stack.enter_async_context(FakeRuntime()) for _ in range(3)]
        addresses = [machine.address for machine in machines]
        client = await stack.enter_async_context(connected(addresses, resume_within_s=5.0))
        yield Mesh(machines, client)


def request(text: str = WORDS, **fields: object) -> m.GenerateRequest:
    prompt = m.ChatPrompt((m.ChatMessage(m.Role.USER, text),))
    return replace(m.GenerateRequest("r", MODEL, prompt), **fields)  # type: ignore[arg-type]


async def answer(client: MeshClient, asked: m.GenerateRequest) -> list[str]:
    """The texts of the choices. Checks that the events of all machines make one stream."""
    texts = [""] * asked.n
    tokens: list[list[int]] = [[] for _ in texts]
    finished: set[int] = set()
    async with aclosing(client.generate(asked, 20.0)) as events:
        seq = 0
        async for event in events:
            assert event.seq == seq
            assert event.index not in finished
            seq += 1
            if isinstance(event.body, m.Delta):
                texts[event.index] += event.body.text
                tokens[event.index] += event.body.token_ids
            elif isinstance(event.body, m.Finished):
                finished.add(event.index)
    assert finished == set(range(asked.n))
    assert tokens == [list(range(len(tokens[0])))] * asked.n
    return texts


async def test_requests_are_spread(mesh: Mesh) -> None:
    gate = Gate(1)
    mesh.script(gate)
    tasks = [asyncio.create_task(answer(mesh.client, request(f"{i} {WORDS}"))) for i in range(30)]
    await asyncio.gather(*(machine.busy(3) for machine in mesh.machines))
    gate.opened.set()
    assert [texts[0] for texts in await asyncio.gather(*tasks)] == [f"{i} {WORDS}" for i in range(30)]


async def test_what_begins_alike_goes_to_one_machine(mesh: Mesh) -> None:
    system = "You are a helpful assistant. " * 200
    for i in range(10):
        await answer(mesh.client, request(f"{system}{i}"))
    counts = sorted(len(machine.requests) for machine in mesh.machines)
    assert counts == [0, 0, 10]


@pytest.mark.parametrize("stop_after", range(1, 14, 3))
@pytest.mark.parametrize("n", [1, 2])
async def test_a_stream_whose_machine_dies_goes_on(mesh: Mesh, stop_after: int, n: int) -> None:
    gate = Gate(stop_after)
    mesh.script(gate)
    task = asyncio.create_task(answer(mesh.client, request(n=n)))
    await asyncio.wait([task, asyncio.create_task(gate.reached.wait())], return_when=asyncio.FIRST_COMPLETED)
    if not task.done():
        dying = mesh.busy()
        mesh.script(echo)
        await dying.kill()
    assert await task == [WORDS] * n


async def test_a_stream_survives_one_machine_after_the_other(mesh: Mesh) -> None:
    gates = [Gate(2), Gate(3), Gate(4)]
    waiting = iter(gates)

    async def next_gate(asked: m.GenerateRequest) -> AsyncGenerator[Said, None]:
        gate = next(waiting, None)
        async with aclosing(gate(asked) if gate else echo(asked)) as said:
            async for each in said:
                yield each

    mesh.script(next_gate)
    task = asyncio.create_task(answer(mesh.client, request()))
    for gate in gates:
        await gate.reached.wait()
        dying = mesh.busy()
        await dying.kill()
        await dying.start()
    assert await task == [WORDS]


async def test_a_machine_that_falls_silent_is_left(mesh: Mesh) -> None:
    gate = Gate(3)
    mesh.script(gate)
    task = asyncio.create_task(answer(mesh.client, request()))
    await gate.reached.wait()
    silent = mesh.busy()
    silent.thawed.clear()
    gate.opened.set()
    assert await asyncio.wait_for(task, 5.0) == [WORDS]
    # Nothing new goes there, and it is used again when it answers again.
    silent.requests.clear()
    for i in range(10):
        await answer(mesh.client, request(f"{i}"))
    assert silent.requests == []
    silent.thawed.set()
    for i in range(1000):
        await answer(mesh.client, request(f"again {i}"))
        if silent.requests:
            return
        await asyncio.sleep(0.01)
    pytest.fail("the machine that came back was not used")


async def test_a_machine_whose_lease_ends_keeps_the_streams_that_go_on(mesh: Mesh) -> None:
    offline = asyncio.Event()
    mesh.client._view.directory.subscribe(lambda change: offline.set())

    async def steady(asked: m.GenerateRequest) -> AsyncGenerator[Said, None]:
        async with aclosing(echo(asked)) as said:
            async for each in said:
                yield each
        await offline.wait()

    for machine in mesh.machines:
        machine.lists.clear()
    mesh.script(steady)
    # It goes on for as long as the machine is taken for online, and some moments more.
    assert await answer(mesh.client, request()) == [WORDS]
    assert sum(len(machine.requests) for machine in mesh.machines) == 1


async def test_the_only_machine_may_come_back(mesh: Mesh) -> None:
    for machine in mesh.machines[1:]:
        await machine.kill()
    gate = Gate(3)
    mesh.script(gate)
    task = asyncio.create_task(answer(mesh.client, request()))
    await gate.reached.wait()
    mesh.script(echo)
    await mesh.machines[0].kill()
    await mesh.machines[0].start()
    assert await task == [WORDS]


async def test_without_machines_it_is_503_before_and_an_error_after(mesh: Mesh) -> None:
    gate = Gate(3)
    mesh.script(gate)
    mesh.client._resume_within_s = 0.3
    task = asyncio.create_task(answer(mesh.client, request()))
    await gate.reached.wait()
    for machine in mesh.machines:
        await machine.kill()
    for failing_task in (task, asyncio.create_task(answer(mesh.client, request()))):
        with pytest.raises(MantlerError) as caught:
            await failing_task
        assert caught.value.code in (ErrorCode.MACHINE_OFFLINE, ErrorCode.RUNTIME_UNAVAILABLE)


@pytest.mark.parametrize("code", [ErrorCode.QUEUE_FULL, ErrorCode.RUNTIME_UNAVAILABLE])
async def test_another_machine_is_tried_before_the_first_token(mesh: Mesh, code: ErrorCode) -> None:
    full = failing(MantlerError(code, "Not now.", retry_after_s=1.0))
    for machine in mesh.machines[:2]:
        machine.script = full
    for i in range(5):
        assert await answer(mesh.client, request(f"{i} {WORDS}")) == [f"{i} {WORDS}"]
    mesh.script(full)
    with pytest.raises(MantlerError) as caught:
        await answer(mesh.client, request())
    assert caught.value.code is code


async def test_mistakes_of_the_client_are_told_once(mesh: Mesh) -> None:
    mesh.script(failing(MantlerError(ErrorCode.INVALID_PARAMETER, "top_k: wrong.", param="top_k")))
    with pytest.raises(MantlerError) as caught:
        await answer(mesh.client, request())
    assert caught.value.param == "top_k"
    assert sum(len(machine.requests) for machine in mesh.machines) == 1


async def test_a_request_that_breaks_machines_does_not_break_all_for_ever(mesh: Mesh) -> None:
    broken = MantlerError(ErrorCode.INTERNAL_ERROR, "It broke.")
    mesh.script(failing(broken, after=(m.Started(MODEL, 1),)))
    with pytest.raises(MantlerError) as caught:
        await answer(mesh.client, request())
    assert caught.value.code is ErrorCode.INTERNAL_ERROR
    assert sum(len(machine.requests) for machine in mesh.machines) <= 4


async def test_other_weights_do_not_go_on_with_an_answer(mesh: Mesh) -> None:
    gate = Gate(3)
    mesh.script(gate)
    mesh.client._resume_within_s = 0.3
    task = asyncio.create_task(answer(mesh.client, request()))
    await gate.reached.wait()

    async def others(asked: m.GenerateRequest) -> AsyncGenerator[Said, None]:
        yield m.Started(asked.model, 1, fingerprint="other")
        yield m.Delta("wrong")

    dying = mesh.busy()
    mesh.script(others)
    await dying.kill()
    with pytest.raises(MantlerError) as caught:
        await task
    assert caught.value.code is ErrorCode.RUNTIME_UNAVAILABLE


async def test_a_client_that_leaves_frees_the_machine(mesh: Mesh) -> None:
    mesh.script(Gate(2))
    async with aclosing(mesh.client.generate(request(), 20.0)) as events:
        async for event in events:
            if isinstance(event.body, m.Delta):
                break
    for machine in mesh.machines:
        await asyncio.wait_for(machine.idle(), 5.0)
    assert mesh.client._balancer.in_flight == 0


async def test_models_are_those_of_all_machines(mesh: Mesh) -> None:
    mesh.machines[1].models["extra:1"] = model("extra:1")
    mesh.machines[2].models[MODEL] = model(MODEL, m.ModelState.LOADING)
    names = [each.id for each in await mesh.client.list_models()]
    assert names == ["extra:1", "org/other:tag", MODEL]
    assert (await mesh.client.get_model(MODEL)).state is m.ModelState.READY
    assert await answer(mesh.client, replace(request(), model="extra:1")) == [WORDS]
    assert [len(machine.requests) for machine in mesh.machines] == [0, 1, 0]
    with pytest.raises(MantlerError) as caught:
        await answer(mesh.client, replace(request(), model="nope"))
    assert caught.value.code is ErrorCode.MODEL_NOT_FOUND


async def test_questions_go_to_a_machine_that_answers(mesh: Mesh) -> None:
    await mesh.machines[0].kill()
    seen = Counter([(await mesh.client.count_tokens(MODEL, m.TextPrompt("a b c"))).tokens for _ in range(6)])
    assert seen == {3: 6}
    assert await mesh.client.detokenize(MODEL, m.TokenPrompt((1, 2))) == "t1 t2"
