"""Keys and their store."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import multiprocessing
import sqlite3
import stat
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import pytest

from mantler.errors import ErrorCode, MantlerError
from mantler.tenancy.keys import display_prefix, hash_key, is_well_formed, mint_key
from mantler.tenancy.store import MAX_PER_MINUTE, KeyRecord, KeyStore


def url_of(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


def test_minted_keys_are_well_formed_and_unlike() -> None:
    keys = {mint_key() for _ in range(1000)}
    assert len(keys) == 1000
    assert all(is_well_formed(key) and key.startswith("mk_live_") and len(key) == 8 + 43 for key in keys)


MALFORMED = ["", "mk_live_", "mk_live_" + "a" * 23, "sk_live_" + "a" * 40, "mk_live_" + "a" * 30 + " "]
MALFORMED += ["mk_live_" + "a" * 999, "mk_live_" + "a" * 30 + "\n", "mk_live_" + "é" * 30]


@pytest.mark.parametrize("key", MALFORMED)
def test_malformed_keys(key: str) -> None:
    assert not is_well_formed(key)


def test_what_is_kept_and_shown_of_a_key() -> None:
    key = "mk_live_" + "abcdefgh" * 4
    assert hash_key(key) == hashlib.sha256(key.encode()).hexdigest()
    assert display_prefix(key) == "mk_live_abcd…"


async def test_create_find_list_revoke(tmp_path: Path) -> None:
    now = 1000.0
    async with await KeyStore.open(url_of(tmp_path / "home" / "k.db"), clock=lambda: now) as keys:
        key, record = await keys.create("a", allowed_models=("m:1",), requests_per_minute=5, expires_unix_s=2000)
        now = 1001.0
        _, other = await keys.create("b")
        assert record.id.startswith("key_")
        assert await keys.find(key) == record
        assert await keys.find(mint_key()) is None
        assert await keys.list_keys() == [record, other]
        assert record.allows("m:1")
        assert not record.allows("m:2")
        assert other.allows("m:2")
        now = 1500.0
        revoked = await keys.revoke(record.id)
        assert revoked is not None
        assert revoked.revoked_unix_s == 1500
        now = 1600.0
        assert await keys.revoke(record.id) == revoked
        assert await keys.find(key) == revoked
        assert await keys.revoke("key_nope") is None


async def test_an_empty_list_of_models_allows_none(tmp_path: Path) -> None:
    async with await KeyStore.open(url_of(tmp_path / "k.db")) as keys:
        key, _ = await keys.create("a", allowed_models=())
        found = await keys.find(key)
        assert found is not None
        assert not found.allows("m:1")


async def test_the_key_is_not_in_the_file_and_the_file_is_private(tmp_path: Path) -> None:
    async with await KeyStore.open(url_of(tmp_path / "k.db")) as keys:
        key, _ = await keys.create("a")
        _check_files(tmp_path, key)
    database = sqlite3.connect(tmp_path / "k.db")
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
    database.close()


def _check_files(folder: Path, key: str) -> None:
    files = [path for path in folder.glob("k.db*") if path.suffix != ".lock"]
    assert len(files) == 3  # the database, its log and the index of the log
    for path in files:
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
        assert key[12:].encode() not in path.read_bytes()


async def test_ensure_is_idempotent_and_does_not_undo_a_revocation(tmp_path: Path) -> None:
    key = "mk_live_" + "b" * 24
    async with await KeyStore.open(url_of(tmp_path / "k.db")) as keys:
        first = await keys.ensure(key)
        assert await keys.ensure(key) == first
        await keys.revoke(first.id)
        assert (await keys.ensure(key)).revoked_unix_s is not None
        assert len(await keys.list_keys()) == 1
        with pytest.raises(MantlerError, match="bootstrap_key"):
            await keys.ensure("mk_live_short")


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 129])
async def test_bad_names_and_limits(tmp_path: Path, name: str) -> None:
    async with await KeyStore.open(url_of(tmp_path / "k.db")) as keys:
        with pytest.raises(MantlerError, match="name"):
            await keys.create(name)
        with pytest.raises(MantlerError, match="requests_per_minute"):
            await keys.create("a", requests_per_minute=0)


async def test_a_failure_does_not_log_the_hash(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    async with await KeyStore.open(url_of(tmp_path / "k.db")) as keys:
        with contextlib.closing(sqlite3.connect(tmp_path / "k.db")) as database:
            database.execute("DROP TABLE api_keys")
        key = mint_key()
        with pytest.raises(MantlerError):
            await keys.find(key)
    assert "no such table" in caplog.text
    assert hash_key(key) not in caplog.text


async def test_a_broken_database_is_unavailable(tmp_path: Path) -> None:
    (tmp_path / "k.db").write_bytes(b"this is no database, " * 100)
    with pytest.raises(MantlerError) as raised:
        await KeyStore.open(url_of(tmp_path / "k.db"))
    assert raised.value.code is ErrorCode.STORE_UNAVAILABLE
    (tmp_path / "file").write_text("")
    with pytest.raises(MantlerError) as raised:
        await KeyStore.open(url_of(tmp_path / "file" / "k.db"))
    assert raised.value.code is ErrorCode.STORE_UNAVAILABLE


def _open_at_once(url: str, barrier: object) -> None:
    async def opened() -> None:
        async with await KeyStore.open(url) as keys:
            await keys.ensure("mk_live_" + "c" * 24)

    barrier.wait()  # type: ignore[attr-defined]
    asyncio.run(opened())


def test_processes_that_start_at_once(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(3)
    url = url_of(tmp_path / "k.db")
    processes = [context.Process(target=_open_at_once, args=(url, barrier)) for _ in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]
    with sqlite3.connect(tmp_path / "k.db") as database:
        assert database.execute("SELECT count(*) FROM api_keys").fetchone() == (1,)
    database.close()


def _make_a_key(url: str, pipe: Connection) -> None:
    async def made() -> str:
        async with await KeyStore.open(url) as keys:
            return (await keys.create("elsewhere"))[0]

    pipe.send(asyncio.run(made()))


async def test_keys_made_elsewhere_are_seen_whoever_else_has_the_file_open(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    url = url_of(tmp_path / "k.db")
    async with await KeyStore.open(url) as keys, await KeyStore.open(url) as second:
        assert await keys.list_keys() == await second.list_keys() == []
        for count in (1, 2):
            here, there = context.Pipe()
            process = context.Process(target=_make_a_key, args=(url, there))
            process.start()
            made = await asyncio.to_thread(here.recv)
            await asyncio.to_thread(process.join)
            assert await keys.find(made) is not None
            assert len(await second.list_keys()) == count


EARLIER = """
CREATE TABLE api_keys (
    id VARCHAR(64) NOT NULL, name VARCHAR(128) NOT NULL, hash VARCHAR(64) NOT NULL, prefix VARCHAR(32) NOT NULL,
    allowed_models TEXT, requests_per_minute INTEGER, created_unix_s BIGINT NOT NULL, expires_unix_s BIGINT,
    revoked_unix_s BIGINT, PRIMARY KEY (id), UNIQUE (hash)
)
"""


async def test_a_database_of_an_earlier_version_gets_what_it_lacks(tmp_path: Path) -> None:
    key = mint_key()
    values = ("key_1", "old", hash_key(key), display_prefix(key), '["m:1"]', 5, 1000, 2000, 1500)
    with contextlib.closing(sqlite3.connect(tmp_path / "k.db")) as database, database:
        database.execute(EARLIER)
        database.execute("INSERT INTO api_keys VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?)", values)
    url = url_of(tmp_path / "k.db")
    stores = await asyncio.gather(*(KeyStore.open(url) for _ in range(4)))
    for store in stores:
        assert await store.find(key) == KeyRecord(
            id="key_1",
            name="old",
            prefix=display_prefix(key),
            allowed_models=("m:1",),
            requests_per_minute=5,
            created_unix_s=1000,
            expires_unix_s=2000,
            revoked_unix_s=1500,
            tokens_per_minute=None,
            allowed_machines=None,
        )
        await store.close()
    async with await KeyStore.open(url) as store:
        granted, _ = await store.create("new", tokens_per_minute=100, allowed_machines=("gpu1", "gpu2"))
        found = await store.find(granted)
        assert found is not None
        assert found.allowed_machines == ("gpu1", "gpu2")
        assert sorted(found.machines or ()) == ["gpu1", "gpu2"]
        assert {record.name: record.tokens_per_minute for record in await store.list_keys()} == {
            "old": None,
            "new": 100,
        }


@pytest.mark.parametrize("field", ["requests_per_minute", "tokens_per_minute"])
@pytest.mark.parametrize("limit", [-1, 0, MAX_PER_MINUTE + 1])
async def test_a_limit_out_of_range_is_refused_by_name(tmp_path: Path, field: str, limit: int) -> None:
    limits: dict[str, Any] = {field: limit}
    async with await KeyStore.open(url_of(tmp_path / "k.db")) as store:
        with pytest.raises(MantlerError, match="between 1 and 1000000000") as caught:
            await store.create("k", **limits)
        assert caught.value.param == field
        assert await store.list_keys() == []
