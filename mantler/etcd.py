"""A small client of etcd 3.4 or later: keys under leases, and watches.

It speaks etcd's JSON over HTTP, which needs neither stubs nor a library beside aiohttp.
"""

from __future__ import annotations

import base64
import ssl
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from mantler.config import MeshSettings
from mantler.etcd_gateway import EtcdError, EtcdTooLongError, Gateway, Message

QUIET_S = 3.0
"""A watch that has said nothing for so long is begun again where it stopped: its connection may be dead, which looks
like there being no news."""
PAGE_KEYS = 200
"""Read at once; fewer where they are long."""


class CompactedError(EtcdError):
    """The revision that a watch was to begin with is gone: look at everything again."""


@dataclass(frozen=True, slots=True)
class KeyValue:
    """A key as etcd has it."""

    key: str
    """With escapes where it is not UTF-8."""
    value: bytes | None
    """``None`` where it was deleted."""
    mod_revision: int


class Etcd:
    """Asks ``endpoints`` (``http://HOST:PORT``) in turns; see :class:`Gateway`. Use as a context manager.

    Everything raises :class:`EtcdError`, after a second for each endpoint at most.
    """

    def __init__(
        self, endpoints: Sequence[str], *, user: str = "", password: str = "", tls: ssl.SSLContext | None = None
    ) -> None:
        self._gateway = Gateway(endpoints, user=user, password=password, tls=tls)

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
        await self._gateway.close()

    async def grant(self, ttl_s: int) -> str:
        """A new lease, which ends after ``ttl_s`` without a word."""
        answer = await self._gateway.ask("lease/grant", {"TTL": str(ttl_s)})
        with _reading():
            return str(answer["ID"])

    async def keep_alive(self, lease: str) -> bool:
        """Renews a lease. ``False`` where it has ended."""
        answer = await self._gateway.ask("lease/keepalive", {"ID": lease})
        with _reading():
            return int(answer["result"].get("TTL", 0)) > 0

    async def keys(self, lease: str) -> frozenset[str]:
        """The keys that end with a lease; none where it has ended. Costs etcd no more than a renewal."""
        answer = await self._gateway.ask("lease/timetolive", {"ID": lease, "keys": True})
        with _reading():
            return frozenset(_text(key) for key in answer.get("keys", []))

    async def revoke(self, lease: str) -> None:
        """Ends a lease, and its keys with it."""
        await self._gateway.ask("lease/revoke", {"ID": lease})

    async def get(self, key: str) -> KeyValue | None:
        """One key."""
        answer = await self._gateway.ask("kv/range", {"key": _coded(key)})
        with _reading():
            return next(map(_key_value, answer.get("kvs", [])), None)

    async def replace(self, key: str, value: bytes, lease: str, before: KeyValue | None) -> bool:
        """Writes a key that ends with its lease, unless it has changed since ``before`` was read: then ``False``."""
        unchanged = {"key": _coded(key), "target": "MOD", "mod_revision": str(before.mod_revision if before else 0)}
        return await self._put_if(unchanged, key, value, lease)

    async def put_beside(self, other: str, key: str, value: bytes, lease: str) -> bool:
        """Writes a key that ends with its lease where the key ``other`` does, too: otherwise ``False``."""
        return await self._put_if({"key": _coded(other), "target": "LEASE", "lease": lease}, key, value, lease)

    async def range(self, prefix: str) -> tuple[int, list[KeyValue]]:
        """The revision of the whole store, and every key that begins with ``prefix`` at that revision."""
        wanted = {"key": _coded(prefix), "range_end": _after(prefix), "limit": str(PAGE_KEYS)}
        found: list[KeyValue] = []
        while True:
            try:
                answer = await self._gateway.ask("kv/range", wanted)
            except EtcdTooLongError:
                # etcd takes values of 1.5 MB, so that some few keys always fit.
                if wanted["limit"] == "1":
                    raise
                wanted["limit"] = str(int(wanted["limit"]) // 2)
                continue
            with _reading():
                page = answer.get("kvs", [])
                found += map(_key_value, page)
                # The first page says which revision the others are of.
                wanted.setdefault("revision", str(answer["header"]["revision"]))
                if not (answer.get("more") and page):
                    return int(wanted["revision"]), found
                wanted["key"] = _coded(base64.b64decode(page[-1]["key"]) + b"\0")

    async def watch(self, prefix: str, revision: int) -> AsyncGenerator[list[KeyValue], None]:
        """What changes at ``revision`` and later, as it comes, for ever. Raises :class:`CompactedError`.

        What comes after a silence that was none is late by :data:`QUIET_S` at most, and a second for each endpoint that
        hangs.
        """
        while True:
            wanted = {"key": _coded(prefix), "range_end": _after(prefix), "start_revision": str(revision)}
            # Fragments are what keeps the length of a line within bounds.
            create = {"create_request": {**wanted, "fragment": True}}
            async with aclosing(self._gateway.follow("watch", create, QUIET_S)) as messages:
                async for message in messages:
                    with _reading():
                        changes, revision = _changes(message, revision)
                    if changes:
                        yield changes

    async def _put_if(self, compare: Message, key: str, value: bytes, lease: str) -> bool:
        put = {"request_put": {"key": _coded(key), "value": _coded(value), "lease": lease}}
        answer = await self._gateway.ask("kv/txn", {"compare": [compare], "success": [put]})
        return bool(answer.get("succeeded"))


def _changes(message: Message, revision: int) -> tuple[list[KeyValue], int]:
    """What a watch from ``revision`` on says, and the revision at which it goes on."""
    result = message.get("result", {})
    if "compact_revision" in result:
        raise CompactedError(f"revision {revision} was compacted")
    if "error" in message or result.get("canceled"):
        raise EtcdError(f"the watch was cancelled: {result.get('cancel_reason') or message.get('error', '')}")
    found = [_key_value(event["kv"], gone=event.get("type") == "DELETE") for event in result.get("events", [])]
    if found:
        # The rest of a fragment may be of the same revision.
        revision = found[-1].mod_revision + (not result.get("fragment"))
    return found, revision


@contextmanager
def _reading() -> Iterator[None]:
    """What is not as etcd writes it is an :class:`EtcdError`."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise EtcdError(f"the answer is not etcd's: {error!r}") from error


def _coded(value: str | bytes) -> str:
    return base64.b64encode(value.encode() if isinstance(value, str) else value).decode()


def _after(prefix: str) -> str:
    """The end of the range of all keys that begin with ``prefix``."""
    raw = prefix.encode()
    return _coded(raw[:-1] + bytes([raw[-1] + 1]))


def _text(key: str) -> str:
    return base64.b64decode(key).decode(errors="backslashreplace")


def _key_value(found: dict[str, Any], *, gone: bool = False) -> KeyValue:
    value = None if gone else base64.b64decode(found.get("value", ""))
    return KeyValue(_text(found["key"]), value, int(found["mod_revision"]))
