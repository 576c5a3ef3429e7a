"""Machine tokens: what lets a runtime join a mesh. Only their hashes are stored, and they can be revoked."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from sqlalchemy import BigInteger, Column, RowMapping, String, Table, insert, select, update

from mantler.errors import invalid
from mantler.tenancy.database import METADATA, Database
from mantler.tenancy.keys import hash_key, is_token, mint_token

MAX_NAME_CHARS = 128

_tokens = Table(
    "machine_tokens",
    METADATA,
    Column("id", String(64), primary_key=True),
    Column("name", String(MAX_NAME_CHARS), nullable=False),
    Column("hash", String(64), nullable=False, unique=True),
    Column("created_unix_s", BigInteger, nullable=False),
    Column("revoked_unix_s", BigInteger),
)


@dataclass(frozen=True, slots=True)
class TokenRecord:
    """What is known of a token. The token itself is not."""

    id: str
    name: str
    created_unix_s: int
    revoked_unix_s: int | None


class TokenStore:
    """Tokens in a database. Every method raises STORE_UNAVAILABLE when the database fails.

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
        await self._database.close()

    async def create(self, name: str) -> tuple[str, TokenRecord]:
        """A new token and its record. The token cannot be shown again."""
        if not (name.strip() and name.isprintable() and len(name) <= MAX_NAME_CHARS):
            raise invalid("name", f"must be 1 to {MAX_NAME_CHARS} printable characters.")
        token = mint_token()
        record = TokenRecord("token_" + secrets.token_hex(8), name, int(self._clock()), None)
        async with self._database.transaction() as connection:
            values = {
                "id": record.id,
                "name": name,
                "hash": hash_key(token),
                "created_unix_s": record.created_unix_s,
            }
            await connection.execute(insert(_tokens).values(values))
        return token, record

    async def list_tokens(self) -> list[TokenRecord]:
        """Every token, revoked ones included, oldest first."""
        async with self._database.transaction() as connection:
            rows = await connection.execute(select(_tokens).order_by(_tokens.c.created_unix_s, _tokens.c.id))
            return [_from_row(row) for row in rows.mappings()]

    async def revoke(self, token_id: str) -> TokenRecord | None:
        """Ends a token for good. ``None`` if there is no such token."""
        async with self._database.transaction() as connection:
            await connection.execute(
                update(_tokens)
                .where(_tokens.c.id == token_id, _tokens.c.revoked_unix_s.is_(None))
                .values(revoked_unix_s=int(self._clock()))
            )
            row = (await connection.execute(select(_tokens).where(_tokens.c.id == token_id))).mappings().one_or_none()
            return None if row is None else _from_row(row)

    async def find(self, token: str) -> TokenRecord | None:
        """The record of ``token``, revoked ones included."""
        if not is_token(token):
            return None
        async with self._database.transaction() as connection:
            rows = await connection.execute(select(_tokens).where(_tokens.c.hash == hash_key(token)))
            row = rows.mappings().one_or_none()
            return None if row is None else _from_row(row)


def _from_row(row: RowMapping) -> TokenRecord:
    return TokenRecord(
        id=row["id"], name=row["name"], created_unix_s=row["created_unix_s"], revoked_unix_s=row["revoked_unix_s"]
    )
