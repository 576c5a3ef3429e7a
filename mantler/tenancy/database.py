"""The database of keys and tokens: connections, tables, and what goes wrong with them."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, Self

import filelock
from sqlalchemy import Connection, MetaData, Table, event, inspect
from sqlalchemy.engine import URL, make_url
from sqlalchemy.exc import SQLAlchemyError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine
from sqlalchemy.schema import CreateTable

from mantler.errors import ErrorCode, MantlerError

BUSY_TIMEOUT_MS = 5_000
"""How long a statement waits for another process's write."""
POOL_SIZE = 4

METADATA = MetaData()
"""Every table registers here."""

_log = logging.getLogger("mantler.tenancy")


class Database:
    """A database. Everything raises STORE_UNAVAILABLE when it fails.

    Args:
        url: SQLAlchemy address with an async driver, as ``Settings.database_url`` has it.
    """

    def __init__(self, url: str) -> None:
        self._url = make_url(url)
        self._engine = _engine(self._url)

    @classmethod
    async def open(cls, url: str) -> Self:
        """Connects, and makes the file and the tables where they do not exist. Several processes may do so at once."""
        database = cls(url)
        try:
            with _translated():
                await database._create()
        except BaseException:
            await database.close()
            raise
        return database

    async def close(self) -> None:
        """Closes the connections."""
        await self._engine.dispose()

    @contextlib.asynccontextmanager
    async def transaction(self) -> AsyncIterator[AsyncConnection]:
        """Commits at the end of the body, unless it raises."""
        with _translated():
            async with self._engine.begin() as connection:
                yield connection

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
                for table in METADATA.sorted_tables:
                    await connection.execute(CreateTable(table, if_not_exists=True))
                    await connection.run_sync(_add_columns, table)
                await connection.commit()


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


def _add_columns(connection: Connection, table: Table) -> None:
    """Brings a table of an earlier version up to date."""
    there = {column["name"] for column in inspect(connection).get_columns(table.name)}
    for column in table.columns:
        if column.name not in there:
            kind = column.type.compile(connection.dialect)
            connection.exec_driver_sql(f"ALTER TABLE {table.name} ADD COLUMN {column.name} {kind}")


def _make_private_file(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # SQLite gives its side files the permissions of the database. A file that exists is never opened here: closing it
    # would end the locks of all of this process's connections (https://sqlite.org/howtocorrupt.html, section 2.2), and
    # the next process to leave would take the write-ahead log with it.
    with contextlib.suppress(FileExistsError):
        os.close(os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o600))
    path.chmod(0o600)


def unavailable() -> MantlerError:
    """The 503 of a database that fails."""
    return MantlerError(ErrorCode.STORE_UNAVAILABLE, "The database of API keys cannot be reached.", retry_after_s=1.0)


@contextlib.contextmanager
def _translated() -> Iterator[None]:
    try:
        yield
    except (SQLAlchemyError, OSError, filelock.Timeout) as error:
        _log.exception("the database of keys failed")
        raise unavailable() from error
