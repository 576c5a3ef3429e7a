"""A client of the whole mesh, with the methods of :class:`mantler.client.RuntimeClient`.

A stream whose machine dies goes on at another one: the client sees one stream, without a token lost or repeated.
"""

from __future__ import annotations

import asyncio
import logging
import random
import secrets
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import TypeVar

from mantler.client import UNARY_TIMEOUT_S, RuntimeClient, TokenCount
from mantler.errors import ErrorCode, MantlerError
from mantler.mesh.balancer import Assignment, Balancer, Refusal, Request
from mantler.mesh.breaker import Outcome, outcome
from mantler.mesh.continuation import Continuation
from mantler.mesh.directory import Change, Directory, MachineChange
from mantler.mesh.load import estimate_tokens
from mantler.mesh.machine import MachineId
from mantler.mesh.prefix import chain
from mantler.mesh.retries import GOES_ON, Backoff, RetryBudget, may_retry
from mantler.messages import ChatPrompt, Event, GenerateRequest, ModelInfo, Started, TextPrompt, TokenPrompt
from mantler.routing.attempt import SILENT_S, Attempts
from mantler.routing.clients import Clients
from mantler.routing.memberships import Membership, Memberships
from mantler.routing.operations import Operations
from mantler.routing.progress import Progress
from mantler.routing.prompt_bytes import prompt_bytes
from mantler.routing.static import StaticMembership
from mantler.routing.view import View
from mantler.security.transport import Security

EXPIRE_EVERY_S = 0.25
TIDY_EVERY_S = 5.0
"""How long connections to machines that went stay open at most, once nobody uses them."""
STOPPED_S = 1.0
"""A longer time between two looks at leases is a sleep of this process, not of the machines."""
ACCEPTED_AFTER_S = 1.0
"""A call that fails later than this was not refused: its machine had it, and it may wait for another one."""

Result = TypeVar("Result")
_log = logging.getLogger("mantler.routing")


class MeshClient:
    """Sends each request to a machine that can answer it. Lives on one event loop; see :func:`connected`.

    Wherever ``allowed`` is an argument, only these machines count; ``None`` is all.

    Args:
        resume_within_s: how long a stream that lost its machine waits for another one, or for the same one to come
            back.

    Attributes:
        operations: what operators see and change.
    """

    def __init__(
        self, view: View, balancer: Balancer, clients: Clients, membership: Membership, *, resume_within_s: float
    ) -> None:
        self._view = view
        self._balancer = balancer
        self._clients = clients
        self._membership = membership
        self._resume_within_s = resume_within_s
        self.operations = Operations(view, balancer, clients)
        self._attempts = Attempts()
        self._budget = RetryBudget(time.monotonic())
        self._backoff = Backoff()
        self._draw = random.Random()  # noqa: S311 - it spreads retries
        self._changed = asyncio.Event()
        view.directory.subscribe(self._take)

    async def generate(
        self, request: GenerateRequest, timeout_s: float, *, allowed: frozenset[MachineId] | None = None
    ) -> AsyncGenerator[Event, None]:
        """The events of one request, in order and without gaps, each choice finished, whatever machines die meanwhile.

        Closing the iterator cancels the call. Iterate inside ``contextlib.aclosing``.

        Raises:
            MantlerError: of the last machine that was tried, MACHINE_OFFLINE where there is none, or MODEL_NOT_ALLOWED
                where only machines that are not allowed serve the model.
        """
        if request.sampling.seed is None:
            # So that another machine draws the same tokens.
            request = replace(request, sampling=replace(request.sampling, seed=secrets.randbits(64)))
        continuation = Continuation(request)
        progress = Progress(time.monotonic() + timeout_s)
        wanted = _wanted(request, allowed)
        self._budget.count_request(time.monotonic())
        while True:
            assignment = await self._place(wanted, progress, continuation)
            result = Outcome.NEITHER
            began_s = time.monotonic()
            try:
                async with self._calling(assignment, continuation, progress) as events:
                    # The only loop here that a token goes through: an iterator around another one costs every token.
                    async for event in events:
                        if isinstance(event.body, Started):
                            progress.began = True
                            self._balancer.answered(assignment, time.monotonic())
                            continuation.check(event.body)
                        news = continuation.take(event)
                        if news is not None:
                            yield news
                result = Outcome.SUCCESS
                return
            except MantlerError as error:
                result = outcome(error.code)
                if continuation.over:
                    return
                progress.accepted |= time.monotonic() - began_s > ACCEPTED_AFTER_S
                await self._consider(error, assignment, progress, continuation)
            finally:
                self._balancer.settle(assignment, result, time.monotonic())

    async def count_tokens(
        self,
        model: str,
        prompt: ChatPrompt | TextPrompt,
        *,
        include_token_ids: bool = False,
        timeout_s: float = UNARY_TIMEOUT_S,
        allowed: frozenset[MachineId] | None = None,
    ) -> TokenCount:
        """See :meth:`RuntimeClient.count_tokens`."""
        return await self._ask(
            Request(model, 0, allowed=allowed),
            timeout_s,
            lambda client, rest_s: client.count_tokens(
                model, prompt, include_token_ids=include_token_ids, timeout_s=rest_s
            ),
        )

    async def detokenize(
        self,
        model: str,
        tokens: TokenPrompt,
        *,
        timeout_s: float = UNARY_TIMEOUT_S,
        allowed: frozenset[MachineId] | None = None,
    ) -> str:
        """See :meth:`RuntimeClient.detokenize`."""
        return await self._ask(
            Request(model, 0, allowed=allowed),
            timeout_s,
            lambda client, rest_s: client.detokenize(model, tokens, timeout_s=rest_s),
        )

    async def list_models(self, allowed: frozenset[MachineId] | None = None) -> list[ModelInfo]:
        """Every model that some machine serves, ordered by id. Raises MACHINE_OFFLINE where no machine is online."""
        await self._membership.refresh()
        if not len(self._view.directory):
            raise _no_machine()
        return self._view.served(allowed)

    async def get_model(self, name: str, allowed: frozenset[MachineId] | None = None) -> ModelInfo:
        """One of them. Raises MODEL_NOT_FOUND, or MODEL_NOT_ALLOWED where only other machines serve it."""
        models = await self.list_models(allowed)
        found = next((model for model in models if model.id == name), None)
        if found is None:
            raise _not_allowed() if self._view.directory.serving(name) else _no_model(name)
        return found

    @asynccontextmanager
    async def _calling(
        self, assignment: Assignment, continuation: Continuation, progress: Progress
    ) -> AsyncIterator[AsyncGenerator[Event, None]]:
        """One machine's part of the answer."""
        using = self._clients.using(assignment.machine.address)
        with using as client, self._attempts.running(assignment.machine.id) as watch:
            calls = client.generate(continuation.next_request(), progress.remaining_s, watch)
            async with aclosing(calls) as events:
                yield events

    async def _place(self, wanted: Request, progress: Progress, continuation: Continuation) -> Assignment:
        """A machine for the next attempt. Raises ``MantlerError`` where there is none, at once or after a while."""
        give_up_s = time.monotonic() + min(self._resume_within_s, progress.remaining_s)
        looked = False
        while True:
            self._changed.clear()
            choice = self._balancer.choose(replace(wanted, excluded=frozenset(progress.excluded)), time.monotonic())
            if isinstance(choice, Assignment):
                return choice
            if (continuation.begun or progress.accepted) and time.monotonic() < give_up_s:
                # Its machine may come back, or another one may come.
                progress.excluded.clear()
                await self._wait_for_change(give_up_s)
            elif not looked and progress.error is None and choice is not Refusal.NONE_ALLOWED:
                # What came up just now may not be known yet.
                looked = True
                await self._membership.refresh()
            else:
                raise progress.error or self._refused(choice, wanted.model)

    async def _wait_for_change(self, until_s: float) -> None:
        try:
            async with asyncio.timeout(min(EXPIRE_EVERY_S, max(0.0, until_s - time.monotonic()))):
                await self._changed.wait()
        except TimeoutError:
            await self._membership.refresh()

    async def _consider(
        self, error: MantlerError, assignment: Assignment, progress: Progress, continuation: Continuation
    ) -> None:
        """Returns where the request is to be tried again; raises ``error`` otherwise."""
        progress.failed(error, assignment.machine.id, continuation.tokens)
        if continuation.begun:
            if error.code not in GOES_ON:
                raise error
            _log.warning("a stream of %s goes on elsewhere: %s", assignment.machine.id, error.code.value)
            return
        if not may_retry(error.code, delivered=False):
            raise error
        # A machine that died bears nothing any more, and all that waited there must go somewhere. One that refuses is
        # busy, and retries would make the others busy, too.
        if error.code is not ErrorCode.MACHINE_OFFLINE and not self._budget.take(time.monotonic()):
            raise error
        wait_s = self._backoff.wait_s(progress.retries, progress.remaining_s, self._draw)
        if wait_s is None:
            raise error
        await asyncio.sleep(wait_s)

    async def _ask(
        self, wanted: Request, timeout_s: float, call: Callable[[RuntimeClient, float], Awaitable[Result]]
    ) -> Result:
        """The answer of some machine that serves the model."""
        progress = Progress(time.monotonic() + timeout_s)
        nothing = Continuation(GenerateRequest("ask", wanted.model, TextPrompt("")))
        self._budget.count_request(time.monotonic())
        while True:
            assignment = await self._place(wanted, progress, nothing)
            result = Outcome.NEITHER
            try:
                with self._clients.using(assignment.machine.address) as client:
                    answer = await call(client, progress.remaining_s)
                result = Outcome.SUCCESS
                return answer
            except MantlerError as error:
                result = outcome(error.code)
                await self._consider(error, assignment, progress, nothing)
            finally:
                self._balancer.settle(assignment, result, time.monotonic())

    def _refused(self, refusal: Refusal, model: str) -> MantlerError:
        if refusal is Refusal.NO_SUCH_MODEL and len(self._view.directory):
            return _no_model(model)
        if refusal is Refusal.NONE_ALLOWED:
            return _not_allowed()
        if len(self._view.directory):
            return MantlerError(
                ErrorCode.RUNTIME_UNAVAILABLE, f"No machine serves {model} right now.", retry_after_s=1.0
            )
        return _no_machine()

    def _take(self, change: Change) -> None:
        if isinstance(change, MachineChange):
            if change.after is None:
                _log.warning("machine %s is offline", change.machine_id)
                self._attempts.give_up(change.machine_id)
            else:
                if change.before is None:
                    _log.info("machine %s is online", change.machine_id)
                self._attempts.keep(change.machine_id)
            self._changed.set()

    async def expire(self) -> None:
        """Takes machines offline whose leases end, unless their streams go on; for ever."""
        looked_s = time.monotonic()
        while True:
            await asyncio.sleep(EXPIRE_EVERY_S)
            now_s = time.monotonic()
            if now_s > looked_s + STOPPED_S:
                # This process stood still, and what machines said meanwhile has not been read yet.
                self._view.directory.resume_expiry(now_s, STOPPED_S)
            looked_s = now_s
            for machine_id in self._attempts.heard_within(SILENT_S):
                self._view.heard(machine_id, now_s=now_s, lease_until_s=now_s + SILENT_S)
            self._view.directory.expire(now_s)

    async def tidy(self) -> None:
        """Closes connections to machines that are offline, unless streams still use them; for ever."""
        while True:
            await asyncio.sleep(TIDY_EVERY_S)
            await self._clients.close_unused(self._view.addresses())


@asynccontextmanager
async def connected(
    addresses: Sequence[str],
    *,
    resume_within_s: float,
    security: Security | None = None,
    view: View | None = None,
    others: Sequence[Membership] = (),
) -> AsyncIterator[MeshClient]:
    """A client of the machines at ``addresses``, and of those that ``others`` tell ``view``.

    Raises ``SecurityError`` where ``security`` does not allow one of the addresses.
    """
    view = view or View(Directory())
    async with Clients(security) as clients:
        membership = Memberships([StaticMembership(addresses, view, clients), *others])
        balancer = Balancer(view.directory, random.Random())  # noqa: S311 - it spreads load
        client = MeshClient(view, balancer, clients, membership, resume_within_s=resume_within_s)
        tasks = [asyncio.create_task(client.expire()), asyncio.create_task(client.tidy())]
        try:
            await membership.start()
            yield client
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await membership.close()


def _wanted(request: GenerateRequest, allowed: frozenset[MachineId] | None) -> Request:
    """What the choice of a machine depends on."""
    salt = (request.cache_salt or "").encode()
    prefix = chain(prompt_bytes(request.prompt), salt)
    tokens = request.n * estimate_tokens(prefix.total_bytes, request.stop.max_tokens)
    return Request(request.model, tokens, prefix, allowed)


def _no_machine() -> MantlerError:
    return MantlerError(
        ErrorCode.MACHINE_OFFLINE, "The machine is offline or its runtime does not answer.", retry_after_s=1.0
    )


def _not_allowed() -> MantlerError:
    return MantlerError(
        ErrorCode.MODEL_NOT_ALLOWED, "This API key may not use the machines that serve the model.", param="model"
    )


def _no_model(name: str) -> MantlerError:
    return MantlerError(ErrorCode.MODEL_NOT_FOUND, f"The model {name!r} is not deployed.", param="model")
