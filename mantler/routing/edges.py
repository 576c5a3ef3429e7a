"""A client of a mesh through its facades. Where one goes away another one goes on, in the middle of a stream, too."""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from typing import TypeVar

from mantler.client import UNARY_TIMEOUT_S, RuntimeClient, TokenCount
from mantler.errors import ErrorCode, MantlerError
from mantler.mesh.continuation import Continuation
from mantler.mesh.machine import MachineId
from mantler.mesh.retries import GOES_ON, Backoff, RetryBudget, may_retry
from mantler.messages import ChatPrompt, Event, GenerateRequest, ModelInfo, Started, TextPrompt, TokenPrompt
from mantler.routing.progress import Progress

LOOK_EVERY_S = 0.5
"""How often it looks, at the least."""

Result = TypeVar("Result")
_log = logging.getLogger("mantler.routing")


class EdgeClient:
    """Asks one facade for as long as it answers, then the next one. Lives on one event loop; see ``mantler.connect``.

    A facade refuses a key, a model or a bad request for all of them. What is about the facade or its machines is tried
    at another one: before the first token within a budget of retries, after it until ``resume_within_s`` have passed
    without one. The answer is the same as without the change, no token is lost or repeated.

    A request that goes on elsewhere is counted by the key's limits there as a new one, what was delivered included.

    Args:
        clients: one for each facade, the preferred one first. They are closed by the caller.
        resume_within_s: how long a stream without a facade waits for one.
    """

    def __init__(self, clients: Sequence[RuntimeClient], *, resume_within_s: float) -> None:
        self._clients = list(clients)
        self._resume_within_s = resume_within_s
        self._budget = RetryBudget(time.monotonic())
        self._backoff = Backoff()
        self._draw = random.Random()  # noqa: S311 - it spreads retries

    async def generate(self, request: GenerateRequest, timeout_s: float) -> AsyncGenerator[Event, None]:
        """The events of one request, in order and without gaps, each choice finished, whatever facades die meanwhile.

        Closing the iterator cancels the call. Iterate inside ``contextlib.aclosing``.

        Raises:
            MantlerError: of the last facade that was tried.
        """
        if request.sampling.seed is None:
            # So that another facade's machine draws the same tokens.
            request = replace(request, sampling=replace(request.sampling, seed=secrets.randbits(64)))
        continuation = Continuation(request)
        progress = Progress(time.monotonic() + timeout_s)
        heard_s = time.monotonic()
        self._budget.count_request(heard_s)
        while True:
            client = self._clients[0]
            try:
                async with aclosing(client.generate(continuation.next_request(), progress.remaining_s)) as events:
                    async for event in events:
                        heard_s = time.monotonic()
                        if isinstance(event.body, Started):
                            progress.began = True
                            continuation.check(event.body)
                        news = continuation.take(event)
                        if news is not None:
                            yield news
                return
            except MantlerError as error:
                if continuation.over:
                    return
                if continuation.begun:
                    give_up_s = min(heard_s + self._resume_within_s, progress.deadline_s)
                    await self._go_on(error, client, progress, continuation.tokens, give_up_s)
                else:
                    await self._try_again(error, client, progress)

    async def count_tokens(
        self,
        model: str,
        prompt: ChatPrompt | TextPrompt,
        *,
        include_token_ids: bool = False,
        timeout_s: float = UNARY_TIMEOUT_S,
    ) -> TokenCount:
        """See :meth:`RuntimeClient.count_tokens`."""
        return await self._ask(
            timeout_s,
            lambda client, rest_s: client.count_tokens(
                model, prompt, include_token_ids=include_token_ids, timeout_s=rest_s
            ),
        )

    async def detokenize(self, model: str, tokens: TokenPrompt, *, timeout_s: float = UNARY_TIMEOUT_S) -> str:
        """See :meth:`RuntimeClient.detokenize`."""
        return await self._ask(timeout_s, lambda client, rest_s: client.detokenize(model, tokens, timeout_s=rest_s))

    async def list_models(self, timeout_s: float = UNARY_TIMEOUT_S) -> list[ModelInfo]:
        """The models that answer and that the key may use, ordered by id."""
        return await self._ask(timeout_s, lambda client, rest_s: client.list_models(rest_s))

    async def get_model(self, model: str, timeout_s: float = UNARY_TIMEOUT_S) -> ModelInfo:
        """One of them. Raises MODEL_NOT_FOUND, or MODEL_NOT_ALLOWED."""
        return await self._ask(timeout_s, lambda client, rest_s: client.get_model(model, rest_s))

    async def _ask(self, timeout_s: float, call: Callable[[RuntimeClient, float], Awaitable[Result]]) -> Result:
        progress = Progress(time.monotonic() + timeout_s)
        self._budget.count_request(time.monotonic())
        while True:
            client = self._clients[0]
            try:
                return await call(client, progress.remaining_s)
            except MantlerError as error:
                await self._try_again(error, client, progress)

    async def _try_again(self, error: MantlerError, client: RuntimeClient, progress: Progress) -> None:
        """Returns where another facade is to be asked; raises ``error`` otherwise."""
        name = MachineId(client.address)
        gone = error.code is ErrorCode.MACHINE_OFFLINE and name not in progress.excluded
        progress.failed(error, name, 0)
        if not may_retry(error.code, delivered=False):
            raise error
        # One that is gone bears nothing any more, and all that waited there must go somewhere, once.
        if not gone and not self._budget.take(time.monotonic()):
            raise error
        wait_s = self._backoff.wait_s(progress.retries, progress.remaining_s, self._draw)
        if wait_s is None:
            raise error
        await self._turn_from(client, wait_s)

    async def _go_on(
        self, error: MantlerError, client: RuntimeClient, progress: Progress, tokens: int, give_up_s: float
    ) -> None:
        """Returns where a stream that has begun is to go on elsewhere; raises ``error`` otherwise."""
        if error.code not in GOES_ON or time.monotonic() >= give_up_s:
            raise error
        if progress.began:
            _log.warning("a stream of %s goes on elsewhere: %s", client.address, error.code.value)
            progress.failed(error, MachineId(client.address), tokens)
        await self._turn_from(client, self._draw.random() * LOOK_EVERY_S)

    async def _turn_from(self, client: RuntimeClient, wait_s: float) -> None:
        """The next facade is asked first from now on, unless somebody has seen to that already."""
        if self._clients[0] is client:
            self._clients.append(self._clients.pop(0))
        await asyncio.sleep(wait_s)
