"""The prompts of one request: a stream of the runtime for each, and the events of all as one stream."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from facade.spelling import spelled_as
from mantler.mesh.machine import MachineId
from mantler.messages import ChatPrompt, Delta, Event, GenerateRequest, Started, TextPrompt, TokenPrompt
from mantler.routing.client import MeshClient

MAX_AT_ONCE = 8
"""Prompts of one request that the runtime has at the same time. The others wait here, not in its queue, where they
would be in the way of other clients."""


def generate_all(
    client: MeshClient,
    requests: Sequence[GenerateRequest],
    echoes: Sequence[str],
    timeout_s: float,
    allowed: frozenset[MachineId] | None,
) -> AsyncGenerator[Event, None]:
    """The events of ``requests``, which all have the same ``n``; closing the iterator cancels what runs.

    Choices are counted through all of them: the ``n`` of the first request come first. The first failure ends all.

    Args:
        echoes: what each choice of a request says before the model does; empty for nothing.
        allowed: see :class:`MeshClient`.
    """
    if len(requests) == 1 and not echoes:
        return client.generate(requests[0], timeout_s, allowed=allowed)
    return _merged(client, requests, echoes or [""] * len(requests), timeout_s, allowed)


async def prompt_text(client: MeshClient, request: GenerateRequest, allowed: frozenset[MachineId] | None) -> str:
    """The prompt of ``request`` as text, which the runtime knows where it is token ids."""
    match request.prompt:
        case TextPrompt(text):
            return text
        case TokenPrompt() as tokens:
            with spelled_as("tokens", "prompt"):
                return await client.detokenize(request.model, tokens, allowed=allowed)
        case ChatPrompt():
            raise ValueError("a conversation has no text until the model's template has rendered it")


async def _merged(
    client: MeshClient,
    requests: Sequence[GenerateRequest],
    echoes: Sequence[str],
    timeout_s: float,
    allowed: frozenset[MachineId] | None,
) -> AsyncGenerator[Event, None]:
    # A reader that does not keep up holds the streams back: what waits here is bounded.
    arrived: asyncio.Queue[Event | Exception | None] = asyncio.Queue(MAX_AT_ONCE)
    places = asyncio.Semaphore(MAX_AT_ONCE)

    async def forward(position: int, request: GenerateRequest) -> None:
        try:
            answer = client.generate(request, timeout_s, allowed=allowed)
            async with places, aclosing(_echoed(answer, echoes[position])) as events:
                async for event in events:
                    await arrived.put(Event(event.seq, position * request.n + event.index, event.body))
            await arrived.put(None)
        except Exception as error:
            await arrived.put(error)

    tasks = [asyncio.create_task(forward(position, request)) for position, request in enumerate(requests)]
    try:
        seq = 0
        for _ in tasks:
            while (item := await arrived.get()) is not None:
                if isinstance(item, Exception):
                    raise item
                yield Event(seq, item.index, item.body)
                seq += 1
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)


async def _echoed(answer: AsyncGenerator[Event, None], echo: str) -> AsyncGenerator[Event, None]:
    async with aclosing(answer) as events:
        async for event in events:
            yield event
            if echo and isinstance(event.body, Started):
                yield Event(event.seq, event.index, Delta(echo))
