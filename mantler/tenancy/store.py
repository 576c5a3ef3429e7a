"""The database of API keys."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sqlalchemy import BigInteger, Column, Integer, RowMapping, String, Table, Text, insert, select, update
from sqlalchemy.exc import IntegrityError

from mantler.errors import invalid
from mantler.mesh.machine import MachineId
from mantler.tenancy.database import METADATA, Database, unavailable
from mantler.tenancy.keys import (
    MIN_SECRET_CHARS,
    PREFIX,
    display_prefix,
    hash_key,
    is_well_formed,
    mint_key,
    mint_key_id,
)

MAX_NAME_CHARS = 128
MAX_PER_MINUTE = 10**9
"""Requests, and tokens."""

_keys = Table(
    "api_keys",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("name", String(MAX_NAME_CHARS), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("prefix", String(32), nullable=False),
    Column("allowed_models", Text),
    Column("requests_per_minute", Integer),
    Column("created_unix_s", BigInteger, nullable=False),
    Column("expires_unix_s", BigInteger),
    Column("revoked_unix_s", BigInteger),
    Column("tokens_per_minute", Integer),
    Column("allowed_machines", Text),
)


@dataclass(frozen=True, slots=True)
class KeyRecord:
    """What is known of a key. The key itself is not."""

    id: str
    name: str
    prefix: str
    """The key's first characters, for people."""
    allowed_models: tuple[str, ...] | None
    """``None`` allows all."""
    requests_per_minute: int | None
    """``None`` sets no limit."""
    created_unix_s: int
    expires_unix_s: int | None
    revoked_unix_s: int | None
    tokens_per_minute: int | None = None
    """``None`` sets no limit."""
    allowed_machines: tuple[str, ...] | None = None
    """Ids. ``None`` allows all."""

    def allows(self, model: str) -> bool:
        """Whether the key may use ``model``."""
        return self.allowed_models is None or model in self.allowed_models

    @property
    def machines(self) -> frozenset[MachineId] | None:
        """The machines that the key may use; ``None`` for all."""
        return None if self.allowed_machines is None else frozenset(map(MachineId, self.allowed_machines))


class KeyStore:
    """Keys in a database. Every method raises STORE_UNAVAILABLE when the database fails.

    Args:
        database: is closed with the store.
        clock: unix time in seconds.
    """

    def __init__(self, database: Database, *, clock: Callable[[], float] = time.time) -> None:
        self._database = database
        self._clock = clock

    @classmethod
    async def open(cls, url: str, *, clock: Callable[[], float] = time.time) -> Self:
        """Of the database at ``url``; see :meth:`Database.open`."""
        return cls(await Database.open(url), clock=clock)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._database.close()

    async def create(
        self,
        name: str,
        *,
        allowed_models: tuple[str, ...] | None = None,
        allowed_machines: tuple[str, ...] | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        expires_unix_s: int | None = None,
    ) -> tuple[str, KeyRecord]:
        """A new key and its record. The key cannot be shown again."""
        key = mint_key()
        record = self._record(
            key,
            name,
            allowed_models=allowed_models,
            allowed_machines=allowed_machines,
            requests_per_minute=requests_per_minute,
            tokens_per_minute=tokens_per_minute,
            expires_unix_s=expires_unix_s,
        )
        await self._insert(key, record)
        return key, record

    async def ensure(self, key: str, name: str = "bootstrap") -> KeyRecord:
        """The record of ``key``, which is made if it does not exist. A key that was revoked stays revoked.

        Raises INVALID_PARAMETER for a key of the wrong shape.
        """
        if not is_well_formed(key):
            raise invalid(
                "bootstrap_key",
                f"must be {PREFIX} and at least {MIN_SECRET_CHARS} further letters, digits, '-' or '_'.",
            )
        record = self._record(key, name)
        try:
            await self._insert(key, record)
        except _KeyExistsError:
            found = await self.find(key)
            if found is None:
                raise unavailable() from None
            return found
        return record

    async def list_keys(self) -> list[KeyRecord]:
        """Every key, revoked and expired ones included, oldest first."""
        async with self._database.transaction() as connection:
            rows = await connection.execute(select(_keys).order_by(_keys.c.created_unix_s, _keys.c.id))
            return [_from_row(row) for row in rows.mappings()]

    async def revoke(self, key_id: str) -> KeyRecord | None:
        """Ends a key for good, from the next request on. ``None`` if there is no such key."""
        async with self._database.transaction() as connection:
            await connection.execute(
                update(_keys)
                .where(_keys.c.id == key_id, _keys.c.revoked_unix_s.is_(None))
                .values(revoked_unix_s=int(self._clock()))
            )
            row = (await connection.execute(select(_keys).where(_keys.c.id == key_id))).mappings().one_or_none()
            return None if row is None else _from_row(row)

    async def find(self, key: str) -> KeyRecord | None:
        """The record of ``key``, revoked and expired ones included."""
        async with self._database.transaction() as connection:
            rows = await connection.execute(select(_keys).where(_keys.c.hash == hash_key(key)))
            row = rows.mappings().one_or_none()
            return None if row is None else _from_row(row)

    def _record(
        self,
        key: str,
        name: str,
        *,
        allowed_models: tuple[str, ...] | None = None,
        allowed_machines: tuple[str, ...] | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        expires_unix_s: int | None = None,
    ) -> KeyRecord:
        if not (name.strip() and name.isprintable() and len(name) <= MAX_NAME_CHARS):
            raise invalid("name", f"must be 1 to {MAX_NAME_CHARS} printable characters.")
        limits = {"requests_per_minute": requests_per_minute, "tokens_per_minute": tokens_per_minute}
        for field, limit in limits.items():
            if limit is not None and not 1 <= limit <= MAX_PER_MINUTE:
                raise invalid(field, f"must be between 1 and {MAX_PER_MINUTE}.")
        return KeyRecord(
            id=mint_key_id(),
            name=name,
            prefix=display_prefix(key),
            allowed_models=allowed_models,
            requests_per_minute=requests_per_minute,
            created_unix_s=int(self._clock()),
            expires_unix_s=expires_unix_s,
            revoked_unix_s=None,
            tokens_per_minute=tokens_per_minute,
            allowed_machines=allowed_machines,
        )

    async def _insert(self, key: str, record: KeyRecord) -> None:
        values = {column.name: getattr(record, column.name) for column in _keys.c if column.name != "hash"}
        values["hash"] = hash_key(key)
        for field in ("allowed_models", "allowed_machines"):
            if values[field] is not None:
                values[field] = json.dumps(values[field])
        async with self._database.transaction() as connection:
            try:
                await connection.execute(insert(_keys).values(values))
            except IntegrityError as error:
                raise _KeyExistsError from error


class _KeyExistsError(Exception):
    """The key is in the database already."""


def _from_row(row: RowMapping) -> KeyRecord:
    return KeyRecord(
        id=row["id"],
        name=row["name"],
        prefix=row["prefix"],
        allowed_models=_strings(row["allowed_models"]),
        requests_per_minute=row["requests_per_minute"],
        created_unix_s=row["created_unix_s"],
        expires_unix_s=row["expires_unix_s"],
        revoked_unix_s=row["revoked_unix_s"],
        tokens_per_minute=row["tokens_per_minute"],
        allowed_machines=_strings(row["allowed_machines"]),
    )


def _strings(stored: str | None) -> tuple[str, ...] | None:
    return None if stored is None else tuple(json.loads(stored))
