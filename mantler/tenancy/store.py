"""The database of API keys."""

from __future__ import annotations

import asyncio
import contextlib
import json
import logging
import os
import time
from collections.abc import AsyncIterator, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import filelock
from sqlalchemy import (
    BigInteger,
    Column,
    Connection,
    Integer,
    MetaData,
    RowMapping,
    String,
    Table,
    Text,
    event,
    insert,
    inspect,
    select,
    update,
)
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import IntegrityError, SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.schema import CreateTable

from mantler.errors import ErrorCode, MantlerError, invalid
from mantler.tenancy.keys import (
    MIN_SECRET_CHARS,
    PREFIX,
    display_prefix,
    hash_key,
    is_well_formed,
    mint_key,
    mint_key_id,
)

BUSY_TIMEOUT_MS = 5_000
"""How long a statement waits for another process's write."""
POOL_SIZE = 4
MAX_NAME_CHARS = 128
MAX_PER_MINUTE = 10**9
"""Requests, and tokens."""

_log = logging.getLogger("mantler.tenancy")

_metadata = MetaData()
_keys = Table(
    "api_keys",
    _metadata,
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
)
_ADDED = ("tokens_per_minute",)
"""Columns that tables of earlier versions lack."""


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

    def allows(self, model: str) -> bool:
        """Whether the key may use ``model``."""
        return self.allowed_models is None or model in self.allowed_models


class KeyStore:
    """Keys in a database. Every method raises STORE_UNAVAILABLE when the database fails.

    Args:
        url: SQLAlchemy address with an async driver, as ``Settings.database_url`` has it.
        clock: unix time in seconds.
    """

    def __init__(self, url: str, *, clock: Callable[[], float] = time.time) -> None:
        self._url = make_url(url)
        self._clock = clock
        self._engine = _engine(self._url)

    @classmethod
    async def open(cls, url: str, *, clock: Callable[[], float] = time.time) -> Self:
        """Connects, and makes the file and the table where they do not exist. Several processes may do so at once."""
        store = cls(url, clock=clock)
        try:
            with _translated():
                await store._create()
        except BaseException:
            await store.close()
            raise
        return store

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Closes the connections."""
        await self._engine.dispose()

    async def create(
        self,
        name: str,
        *,
        allowed_models: tuple[str, ...] | None = None,
        requests_per_minute: int | None = None,
        tokens_per_minute: int | None = None,
        expires_unix_s: int | None = None,
    ) -> tuple[str, KeyRecord]:
        """A new key and its record. The key cannot be shown again."""
        key = mint_key()
        record = self._record(key, name, allowed_models, requests_per_minute, tokens_per_minute, expires_unix_s)
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
        record = self._record(key, name, None, None, None, None)
        try:
            await self._insert(key, record)
        except _KeyExistsError:
            found = await self.find(key)
            if found is None:
                raise _unavailable() from None
            return found
        return record

    async def list_keys(self) -> list[KeyRecord]:
        """Every key, revoked and expired ones included, oldest first."""
        async with self._transaction() as connection:
            rows = await connection.execute(select(_keys).order_by(_keys.c.created_unix_s, _keys.c.id))
            return [_from_row(row) for row in rows.mappings()]

    async def revoke(self, key_id: str) -> KeyRecord | None:
        """Ends a key for good, from the next request on. ``None`` if there is no such key."""
        async with self._transaction() as connection:
            await connection.execute(
                update(_keys)
                .where(_keys.c.id == key_id, _keys.c.revoked_unix_s.is_(None))
                .values(revoked_unix_s=int(self._clock()))
            )
            row = (await connection.execute(select(_keys).where(_keys.c.id == key_id))).mappings().one_or_none()
            return None if row is None else _from_row(row)

    async def find(self, key: str) -> KeyRecord | None:
        """The record of ``key``, revoked and expired ones included."""
        async with self._transaction() as connection:
            rows = await connection.execute(select(_keys).where(_keys.c.hash == hash_key(key)))
            row = rows.mappings().one_or_none()
            return None if row is None else _from_row(row)

    def _record(
        self,
        key: str,
        name: str,
        allowed_models: tuple[str, ...] | None,
        requests_per_minute: int | None,
        tokens_per_minute: int | None,
        expires_unix_s: int | None,
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
        )

    async def _insert(self, key: str, record: KeyRecord) -> None:
        values = {column.name: getattr(record, column.name) for column in _keys.c if column.name != "hash"}
        values["hash"] = hash_key(key)
        if record.allowed_models is not None:
            values["allowed_models"] = json.dumps(record.allowed_models)
        async with self._transaction() as connection:
            try:
                await connection.execute(insert(_keys).values(values))
            except IntegrityError as error:
                raise _KeyExistsError from error

    async def _create(self) -> None:
        async with contextlib.AsyncExitStack() as stack:
            if self._url.get_backend_name() == "sqlite" and self._url.database:
                path = Path(self._url.database)
                # SQLite's busy timeout does not cover the switch to WAL, so one process at a time does it.
                lock = filelock.FileLock(
                    path.with_name(path.name + ".lock"),
                    timeout=BUSY_TIMEOUT_MS / 1000,
                    thread_local=False,  # it is taken in a worker thread and given back here
                )
                await asyncio.to_thread(_make_private_file, path)
                await asyncio.to_thread(lock.acquire)
                stack.callback(lock.release)
            async with self._engine.connect() as connection:
                if connection.dialect.name == "sqlite":
                    await connection.exec_driver_sql("PRAGMA journal_mode=WAL")
                await connection.execute(CreateTable(_keys, if_not_exists=True))
                await connection.run_sync(_add_columns)
                await connection.commit()

    @contextlib.asynccontextmanager
    async def _transaction(self) -> AsyncIterator[AsyncConnection]:
        with _translated():
            async with self._engine.begin() as connection:
                yield connection


class _KeyExistsError(Exception):
    """The key is in the database already."""


def _engine(url: URL) -> AsyncEngine:
    engine = create_async_engine(
        url,
        pool_size=POOL_SIZE,
        max_overflow=0,
        pool_timeout=BUSY_TIMEOUT_MS / 1000,
        hide_parameters=True,  # errors go to the log, and the parameters are hashes and names of keys
    )
    if url.get_backend_name() == "sqlite":

        @event.listens_for(engine.sync_engine, "connect")
        def prepare(connection: Any, _: object) -> None:
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA busy_timeout={BUSY_TIMEOUT_MS}")
            cursor.execute("PRAGMA synchronous=NORMAL")
            cursor.close()

    return engine


def _add_columns(connection: Connection) -> None:
    """Brings a table of an earlier version up to date."""
    there = {column["name"] for column in inspect(connection).get_columns(_keys.name)}
    for name in _ADDED:
        if name not in there:
            kind = _keys.c[name].type.compile(connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {_keys.name} ADD COLUMN {name} {kind}")


def _make_private_file(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite gives its side files the permissions of the database.
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))
    path.chmod(0o600)


def _from_row(row: RowMapping) -> KeyRecord:
    allowed = row["allowed_models"]
    return KeyRecord(
        id=row["id"],
        name=row["name"],
        prefix=row["prefix"],
        allowed_models=None if allowed is None else tuple(json.loads(allowed)),
        requests_per_minute=row["requests_per_minute"],
        created_unix_s=row["created_unix_s"],
        expires_unix_s=row["expires_unix_s"],
        revoked_unix_s=row["revoked_unix_s"],
        tokens_per_minute=row["tokens_per_minute"],
    )


def _unavailable() -> MantlerError:
    return MantlerError(ErrorCode.STORE_UNAVAILABLE, "The database of API keys cannot be reached.", retry_after_s=1.0)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, OSError, filelock.Timeout) as error:
        _log.exception("the database of keys failed")
        raise _unavailable() from error
