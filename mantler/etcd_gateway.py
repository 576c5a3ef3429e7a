"""Questions to etcd's JSON gateway, at an endpoint that answers.

The API is https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
from collections.abc import AsyncGenerator, Sequence
from http import HTTPStatus
from typing import Any

import aiohttp
from aiohttp.http_exceptions import LineTooLong

TIMEOUT_S = 1.0
"""For each endpoint. Two of them fit into the shortest lease, so that one which hangs ends none."""
MAX_LINE_BYTES = 8 * 2**20
"""Of one message."""
MAX_REFUSAL_BYTES = 1000

Message = dict[str, Any]


class EtcdError(Exception):
    """No endpoint answered, or etcd refused. The text is for the log."""


class EtcdTooLongError(EtcdError):
    """The answer is longer than this process takes: ask for less."""


_FAILURES = (aiohttp.ClientError, TimeoutError, OSError, ValueError, EtcdError)


class Gateway:
    """Asks ``endpoints`` (``http://HOST:PORT``) in turns. One that fails is asked last from then on.

    Args:
        user: with ``password``, where etcd wants them.
        tls: for https endpoints.
    """

    def __init__(self, endpoints: Sequence[str], *, user: str, password: str, tls: ssl.SSLContext | None) -> None:
        self._endpoints = [endpoint.rstrip("/") for endpoint in endpoints]
        self._quiet = ""
        """The endpoint whose stream fell silent last."""
        self._user = user
        self._password = password
        self._token = ""
        connector = aiohttp.TCPConnector(limit=0, ssl=tls if tls is not None else True)
        self._http = aiohttp.ClientSession(connector=connector, read_bufsize=MAX_LINE_BYTES)

    async def close(self) -> None:
        """Ends all connections."""
        await self._http.close()

    async def ask(self, path: str, body: Message) -> Message:
        """The answer of the first endpoint that gives one. Raises :class:`EtcdError` where none does.

        That is an :class:`EtcdTooLongError` where it is longer than :data:`MAX_LINE_BYTES`, or twice that.
        """
        failures = []
        for endpoint in tuple(self._endpoints):
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    response = await self._send(endpoint, path, body)
                    with contextlib.closing(response):
                        # A stream's only message is a line of its own.
                        return _message(await response.content.readline())
            except LineTooLong as error:
                raise EtcdTooLongError(f"{endpoint}: the answer to {path} is too long") from error
            except _FAILURES as error:
                failures.append(self._failed(endpoint, error))
        raise EtcdError("; ".join(failures))

    async def follow(self, path: str, body: Message, quiet_s: float) -> AsyncGenerator[Message, None]:
        """The messages of a stream, until nothing has come for ``quiet_s``. The next stream begins elsewhere then.

        Raises :class:`EtcdError` where no endpoint begins, and where the stream breaks.
        """
        endpoint, response = await self._begun(path, body)
        with contextlib.closing(response):
            while True:
                try:
                    async with asyncio.timeout(quiet_s):
                        message = _message(await response.content.readline())
                except TimeoutError:
                    self._quiet = endpoint
                    return
                except (*_FAILURES, LineTooLong) as error:
                    raise EtcdError(self._failed(endpoint, error)) from error
                yield message

    async def _begun(self, path: str, body: Message) -> tuple[str, aiohttp.ClientResponse]:
        """The stream of the first endpoint that begins one, which it does with a first message."""
        failures = []
        for endpoint in sorted(self._endpoints, key=lambda endpoint: endpoint == self._quiet):
            try:
                async with asyncio.timeout(TIMEOUT_S):
                    return endpoint, await self._send(endpoint, path, body)
            except _FAILURES as error:
                failures.append(self._failed(endpoint, error))
        raise EtcdError("; ".join(failures))

    def _failed(self, endpoint: str, error: Exception) -> str:
        # A member without a leader refuses what another one does, so a refusal counts, too.
        self._endpoints.remove(endpoint)
        self._endpoints.append(endpoint)
        return f"{endpoint}: {str(error) or 'no answer'}"

    async def _send(self, endpoint: str, path: str, body: Message) -> aiohttp.ClientResponse:
        """An answer of ``endpoint`` that has begun, which the caller closes."""
        if self._user and not self._token:
            self._token = await self._authenticated(endpoint)
        token = self._token
        response = await self._post(endpoint, path, body, token)
        if response.status == HTTPStatus.UNAUTHORIZED and token:
            # It has ended, unless somebody else has a new one already.
            response.close()
            if self._token == token:
                self._token = await self._authenticated(endpoint)
            response = await self._post(endpoint, path, body, self._token)
        if response.status == HTTPStatus.OK:
            return response
        with contextlib.closing(response):
            said = (await response.content.read(MAX_REFUSAL_BYTES)).decode(errors="replace")
        raise EtcdError(f"refuses {path}: {said.strip()}")

    async def _authenticated(self, endpoint: str) -> str:
        response = await self._post(endpoint, "auth/authenticate", {"name": self._user, "password": self._password}, "")
        with contextlib.closing(response):
            answer = _message(await response.content.readline())
        if "token" not in answer:
            raise EtcdError(f"does not let {self._user} in: {answer.get('error', '')}")
        return str(answer["token"])

    async def _post(self, endpoint: str, path: str, body: Message, token: str) -> aiohttp.ClientResponse:
        headers = {"Authorization": token} if token else {}
        # Whoever asks sets the limit: a stream has none.
        forever = aiohttp.ClientTimeout(total=None, sock_connect=TIMEOUT_S)
        return await self._http.post(f"{endpoint}/v3/{path}", json=body, headers=headers, timeout=forever)


def _message(line: bytes) -> Message:
    """One JSON object. Raises :class:`EtcdError` for anything else."""
    try:
        message = json.loads(line)
    except ValueError:
        message = None
    if not isinstance(message, dict):
        raise EtcdError("the answer is cut off" if not line else "the answer is not etcd's")
    return message
