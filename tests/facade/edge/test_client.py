"""The typed client at the edge."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import replace

import pytest

from mantler import messages as m
from mantler.client import RuntimeClient
from mantler.errors import ErrorCode, MantlerError
from tests.facade.conftest import KEY, MODEL
from tests.facade.edge.conftest import Edge
from tests.fake_runtime import Body, Gate, echo

REQUEST = m.GenerateRequest("typed", MODEL, m.ChatPrompt((m.ChatMessage(m.Role.USER, "one two three"),)))


async def said(client: RuntimeClient, request: m.GenerateRequest = REQUEST) -> str:
    """The text of the first choice."""
    async with aclosing(client.generate(request, 10)) as events:
        return "".join([event.body.text async for event in events if isinstance(event.body, m.Delta)])


async def test_a_key_opens_the_edge(edge: Edge) -> None:
    async with RuntimeClient(edge.address, api_key=KEY) as client:
        assert await said(client) == "one two three"
        assert edge.runtime.requests[-1].request_id == "typed"
        assert (await client.count_tokens(MODEL, m.TextPrompt("one two"))).tokens == 2
        assert await client.detokenize(MODEL, m.TokenPrompt((1, 2))) == "t1 t2"
        assert [model.id for model in await client.list_models()] == ["org/other:tag", MODEL]
        described = await client.get_model(MODEL)
        assert described.deployment is not None
        assert described.deployment.max_request_tokens == 8192


@pytest.mark.parametrize("key", [None, "mk_live_" + "x" * 32])
async def test_without_a_good_key_it_stays_shut(edge: Edge, key: str | None) -> None:
    async with RuntimeClient(edge.address, api_key=key) as client:
        with pytest.raises(MantlerError) as caught:
            await said(client)
        assert caught.value.code is ErrorCode.INVALID_API_KEY
        with pytest.raises(MantlerError) as caught:
            await client.list_models()
        assert caught.value.code is ErrorCode.INVALID_API_KEY


async def test_what_an_edge_does_not_do_is_said(edge: Edge) -> None:
    async with RuntimeClient(edge.address, api_key=KEY) as client:
        with pytest.raises(MantlerError, match=r"Operators use AdminService\.DeployModel\."):
            async with aclosing(client.load_model(MODEL)) as reports:
                await anext(reports)
        with pytest.raises(MantlerError, match=r"Operators use AdminService\.UndeployModel\."):
            await client.unload_model(MODEL)


async def test_an_answer_that_another_facade_began_goes_on(edge: Edge) -> None:
    resumed = replace(REQUEST, sampling=m.SamplingParams(seed=1), resume=m.ResumePoint(((0, 1),)))
    async with RuntimeClient(edge.address, api_key=KEY) as client, aclosing(client.generate(resumed, 10)) as events:
        deltas = [event.body async for event in events if isinstance(event.body, m.Delta)]
    assert [(delta.text, delta.token_ids) for delta in deltas] == [("one two", ()), (" three", (2,))]
    assert edge.runtime.requests[-1].resume == resumed.resume


async def test_a_machine_that_dies_meanwhile_loses_nothing_of_it(edge: Edge) -> None:
    gate = edge.runtime.script = Gate(stop_after=3)
    resumed = replace(REQUEST, sampling=m.SamplingParams(seed=1), resume=m.ResumePoint(((0,),)))
    async with RuntimeClient(edge.address, api_key=KEY) as client:
        asked = asyncio.create_task(said(client, resumed))
        await gate.reached.wait()
        await edge.runtime.kill()
        edge.runtime.script = echo
        await edge.runtime.start()
        assert await asked == "one two three"
    assert edge.runtime.requests[-1].resume == m.ResumePoint(((0, 1),))


async def test_what_was_delivered_counts_for_the_keys_limits(edge: Edge) -> None:
    """Or tokens would be free for whoever calls them delivered."""

    async def last_token(_: m.GenerateRequest) -> AsyncGenerator[Body, None]:
        yield m.Started(MODEL, 1)
        yield m.Delta("x" * 900)
        yield m.Delta("x", (1,))
        yield m.Finished(m.FinishReason.LENGTH, m.Usage(prompt_tokens=1, completion_tokens=901))

    edge.runtime.script = last_token
    await edge.new_key(tokens_per_minute=2000)
    point = m.ResumePoint((tuple(range(900)),))
    resumed = replace(REQUEST, sampling=m.SamplingParams(seed=1), resume=point, stop=m.StopParams(max_tokens=901))
    async with RuntimeClient(edge.address, api_key=edge.key) as client:
        await said(client, resumed)
        await said(client, resumed)
        with pytest.raises(MantlerError) as caught:
            await said(client, resumed)
    assert caught.value.code is ErrorCode.RATE_LIMIT_EXCEEDED


def test_a_key_that_no_header_holds_is_refused() -> None:
    with pytest.raises(ValueError, match="api_key must be printable ASCII"):
        RuntimeClient("127.0.0.1:1", api_key="mk_live_\n")
