"""A small client of etcd 3.4 or later: keys under leases, and watches.

It speaks etcd's JSON over HTTP (https://etcd.io/docs/v3.5/dev-guide/api_grpc_gateway/), which needs neither stubs nor a
library beside aiohttp.
"""

from __future__ import annotations

import base64
import contextlib
import json
import ssl
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

from mantler.config import MeshSettings

TIMEOUT_S = 1.0
MAX_LINE_BYTES = 8 * 2**20
"""Of one line of a watch."""


class EtcdError(Exception):
    """No endpoint answered, or etcd refused. The text is for the log."""


class CompactedError(EtcdError):
    """The revision that a watch was to begin with is gone: look at everything again."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as etcd has it."""

    key: str
    value: bytes | None
    """``None`` where it was deleted."""
    mod_revision: int


class Etcd:
    """Asks ``endpoints`` (``http://HOST:PORT``) in turns, the one that answered last first. Use as a context manager.

    Args:
        user: with ``password``, where etcd wants them.
        tls: for https endpoints.
    """

    def __init__(
        self, endpoints: Sequence[str], *, user: str = "", password: str = "", tls: ssl.SSLContext | None = None
    ) -> None:
        self._endpoints = list(endpoints)
        self._user = user
        self._password = password
        self._token = ""
        connector = aiohttp.TCPConnector(limit=0, ssl=tls if tls is not None else True)
        self._http = aiohttp.ClientSession(connector=connector, read_bufsize=MAX_LINE_BYTES)

    @classmethod
    def of(cls, settings: MeshSettings) -> Self:
        """As ``settings`` say. https endpoints are told by ``tls_ca``, and shown ``tls_cert``."""
        tls = ssl.create_default_context(cafile=settings.tls_ca)
        if settings.tls_cert is not None:
            tls.load_cert_chain(settings.tls_cert, settings.tls_key)
        return cls(settings.etcd, user=settings.etcd_user, password=settings.etcd_password or "", tls=tls)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._http.close()

    async def grant(self, ttl_s: int) -> str:
        """A new lease, which ends after ``ttl_s`` without a word."""
        return str((await self._post("lease/grant", {"TTL": str(ttl_s)}))["ID"])

    async def keep_alive(self, lease: str) -> bool:
        """Renews a lease. ``False`` where it has ended."""
        return int((await self._post("lease/keepalive", {"ID": lease}))["result"].get("TTL", 0)) > 0

    async def revoke(self, lease: str) -> None:
        """Ends a lease, and its keys with it."""
        await self._post("lease/revoke", {"ID": lease})

    async def get(self, key: str) -> KeyValue | None:
        """One key."""
        found = (await self._post("kv/range", {"key": _coded(key)})).get("kvs", [])
        return _key_value(found[0]) if found else None

    async def put(self, key: str, value: bytes, lease: str) -> None:
        """Writes a key that ends with its lease."""
        await self._post("kv/put", {"key": _coded(key), "value": _coded(value), "lease": lease})

    async def replace(self, key: str, value: bytes, lease: str, before: KeyValue | None) -> bool:
        """Writes a key unless it has changed since ``before`` was read. Returns whether it did."""
        compare = {"key": _coded(key), "target": "MOD", "mod_revision": str(before.mod_revision if before else 0)}
        put = {"request_put": {"key": _coded(key), "value": _coded(value), "lease": lease}}
        return bool((await self._post("kv/txn", {"compare": [compare], "success": [put]})).get("succeeded"))

    async def range(self, prefix: str) -> tuple[int, list[KeyValue]]:
        """The revision of the whole store, and every key that begins with ``prefix``."""
        answer = await self._post("kv/range", {"key": _coded(prefix), "range_end": _after(prefix)})
        return int(answer["header"]["revision"]), [_key_value(found) for found in answer.get("kvs", [])]

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[list[KeyValue], None]:
        """What changes at ``revision`` and later, as it comes, for ever. Raises :class:`CompactedError`."""
        wanted = {"key": _coded(prefix), "range_end": _after(prefix), "start_revision": str(revision)}
        async with self._open("watch", {"create_request": wanted}, None) as response:
            async for line in response.content:
                result = json.loads(line).get("result", {})
                if "compact_revision" in result:
                    raise CompactedError(f"revision {revision} was compacted")
                if result.get("canceled"):
                    raise EtcdError(f"the watch was cancelled: {result.get('cancel_reason', '')}")
                if events := result.get("events"):
                    yield [_key_value(event["kv"], gone=event.get("type") == "DELETE") for event in events]
        raise EtcdError("the watch has ended")

    async def _post(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        async with self._open(path, body, TIMEOUT_S) as response:
            # A stream's only message is a line of its own.
            answer: dict[str, Any] = json.loads(await response.content.readline() or b"{}")
            return answer

    @contextlib.asynccontextmanager
    async def _open(
        self, path: str, body: dict[str, Any], timeout_s: float | None
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """The answer of the first endpoint that has one. Whatever fails in the body is an :class:`EtcdError`, too."""
        response = await self._ask(path, body, timeout_s)
        try:
            yield response
        except (aiohttp.ClientError, TimeoutError, ValueError, KeyError) as error:
            raise EtcdError(f"{path}: {error!r}") from error
        finally:
            response.close()

    async def _ask(self, path: str, body: dict[str, Any], timeout_s: float | None) -> aiohttp.ClientResponse:
        failures = []
        for endpoint in list(self._endpoints):
            try:
                response = await self._send(endpoint, path, body, timeout_s)
            except (aiohttp.ClientError, TimeoutError, OSError, EtcdError) as error:
                # A member without a leader refuses what another one does.
                failures.append(f"{endpoint}: {error or type(error).__name__}")
                continue
            self._endpoints.remove(endpoint)
            self._endpoints.insert(0, endpoint)
            return response
        raise EtcdError("; ".join(failures))

    async def _send(
        self, endpoint: str, path: str, body: dict[str, Any], timeout_s: float | None
    ) -> aiohttp.ClientResponse:
        for first in (True, False):
            if self._user and not self._token and path != "auth/authenticate":
                self._token = await self._authenticated()
            response = await self._http.post(
                f"{endpoint.rstrip('/')}/v3/{path}",
                json=body,
                headers={"Authorization": self._token} if self._token else {},
                timeout=aiohttp.ClientTimeout(total=timeout_s, sock_connect=TIMEOUT_S),
            )
            if response.status == 200:
                return response
            said = (await response.content.read(1000)).decode(errors="replace")
            response.close()
            if not (first and self._token and response.status == 401):
                raise EtcdError(f"{endpoint} refuses {path}: {said.strip()}")
            self._token = ""  # it has ended; a new one is asked for
        raise AssertionError("the second attempt returns or raises")

    async def _authenticated(self) -> str:
        answer = await self._post("auth/authenticate", {"name": self._user, "password": self._password})
        return str(answer["token"])


def _coded(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def _after(prefix: str) -> str:
    """The end of the range of all keys that begin with ``prefix``."""
    raw = prefix.encode()
    return _coded(raw[:-1] + bytes([raw[-1] + 1]))


def _key_value(found: dict[str, Any], *, gone: bool = False) -> KeyValue:
    value = None if gone else base64.b64decode(found.get("value", ""))
    return KeyValue(base64.b64decode(found["key"]).decode(), value, int(found["mod_revision"]))
