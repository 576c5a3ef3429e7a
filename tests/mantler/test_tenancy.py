"""Keys, their store and their limits."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import multiprocessing
import sqlite3
import stat
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mantler.errors import ErrorCode, MantlerError
from mantler.tenancy.keys import display_prefix, hash_key, is_well_formed, mint_key
from mantler.tenancy.limits import MAX_DEBT_NS, PERIOD_NS, RateLimiter
from mantler.tenancy.store import KeyStore


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


class Clock:
    def __init__(self) -> None:
        self.now_ns = 10**12

    def __call__(self) -> int:
        return self.now_ns


def test_a_whole_minute_at_once_and_then_evenly() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    assert [limiter.reserve("k", 3) for _ in range(4)] == [True, True, True, False]
    state = limiter.state("k", 3)
    assert (state.limit, state.remaining, state.reset_s, state.retry_after_s) == (3, 0, 60.0, 20.0)
    clock.now_ns += 20 * 10**9 - 1
    assert not limiter.reserve("k", 3)
    clock.now_ns += 1
    assert limiter.state("k", 3).remaining == 1
    assert limiter.reserve("k", 3)
    assert limiter.reserve("other", 3)


def test_a_refund_undoes_a_reservation() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    assert limiter.reserve("k", 2)
    before = limiter.state("k", 2)
    assert limiter.reserve("k", 2)
    limiter.refund("k", 2)
    assert limiter.state("k", 2) == before
    limiter.refund("k", 2)
    limiter.refund("k", 2)
    assert len(limiter) == 0
    assert limiter.state("k", 2).remaining == 2


def test_idle_keys_are_forgotten() -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    for i in range(100_000):
        assert limiter.reserve(f"key_{i}", 60)
        clock.now_ns += 10**7  # each is idle again after a second, in which 100 others come
    assert len(limiter) < 2048


@given(
    limit=st.integers(1, 10_000),
    gaps_ns=st.lists(st.integers(0, PERIOD_NS // 2), min_size=1, max_size=40),
)
def test_the_wait_is_exact(limit: int, gaps_ns: list[int]) -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    for gap_ns in gaps_ns:
        clock.now_ns += gap_ns
        state = limiter.state("k", limit)
        assert 0 <= state.remaining <= limit
        assert (state.remaining == 0) == (state.retry_after_s > 0)
        # Use up what is there, then wait exactly as long as we are told.
        for _ in range(min(state.remaining, 50)):
            assert limiter.reserve("k", limit)
        wait_ns = round(limiter.state("k", limit).retry_after_s * 1e9)
        if wait_ns:
            assert not limiter.reserve("k", limit)
            clock.now_ns += wait_ns - 1
            assert not limiter.reserve("k", limit)
            clock.now_ns += 1
        assert limiter.reserve("k", limit)


@given(limit=st.integers(1, 50), gaps_ns=st.lists(st.integers(0, PERIOD_NS // 10), max_size=200))
def test_over_any_time_no_more_than_the_burst_and_what_flows_back(limit: int, gaps_ns: list[int]) -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    began = clock.now_ns
    admitted = 0
    for gap_ns in gaps_ns:
        clock.now_ns += gap_ns
        admitted += limiter.reserve("k", limit)
        assert admitted <= limit + (clock.now_ns - began) * limit / PERIOD_NS


@given(
    limit=st.integers(1, 1000),
    events=st.lists(st.tuples(st.integers(0, 90 * 10**9), st.integers(1, 1500), st.integers(0, 3000)), max_size=40),
)
def test_what_was_used_is_within_the_limit_and_what_was_owed(limit: int, events: list[tuple[int, int, int]]) -> None:
    clock = Clock()
    limiter = RateLimiter(clock)
    admitted_at: int | None = None
    for wait_ns, estimate, used in events:
        clock.now_ns += wait_ns
        state = limiter.state("k", limit, estimate)
        admitted = limiter.reserve("k", limit, estimate)
        # What the header says is what happens.
        assert admitted == (state.retry_after_s == 0)
        assert admitted == (min(estimate, limit) <= state.remaining)
        if not admitted:
            clock.now_ns += round(state.retry_after_s * 1e9) + 1
            assert limiter.reserve("k", limit, estimate)
        limiter.settle("k", limit, reserved=estimate, used=used)
        admitted_at = clock.now_ns
        assert limiter.state("k", limit).reset_s <= 60 * (limit + 1) / limit + MAX_DEBT_NS / 1e9
    if admitted_at is not None:
        clock.now_ns += 2 * PERIOD_NS + MAX_DEBT_NS
        assert limiter.state("k", limit).remaining == limit


async def test_a_database_of_an_earlier_version_gets_the_new_column(tmp_path: Path) -> None:
    url = f"sqlite+aiosqlite:///{tmp_path / 'keys.db'}"
    async with await KeyStore.open(url) as store:
        key, _ = await store.create("old", requests_per_minute=5)
    with contextlib.closing(sqlite3.connect(tmp_path / "keys.db")) as database, database:
        database.execute("ALTER TABLE api_keys DROP COLUMN tokens_per_minute")
    for _ in range(2):
        async with await KeyStore.open(url) as store:
            found = await store.find(key)
            assert found is not None
            assert (found.requests_per_minute, found.tokens_per_minute) == (5, None)
    async with await KeyStore.open(url) as store:
        _, record = await store.create("new", tokens_per_minute=100)
        assert record.tokens_per_minute == 100
        assert {each.name: each.tokens_per_minute for each in await store.list_keys()} == {"old": None, "new": 100}
        with pytest.raises(MantlerError, match="between 1 and"):
            await store.create("bad", tokens_per_minute=0)
