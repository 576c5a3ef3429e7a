"""Machine tokens and the operator's token."""

from __future__ import annotations

import multiprocessing
import os
import sqlite3
import stat
from pathlib import Path
from typing import Any

import pytest

from mantler.errors import ErrorCode, MantlerError
from mantler.tenancy.keys import is_operator_token, is_token, mint_key, mint_operator_token, mint_token
from mantler.tenancy.operator import FILE, operator_token, read_operator_token
from mantler.tenancy.tokens import TokenStore


def url_of(path: Path) -> str:
    return f"sqlite+aiosqlite:///{path}"


def test_each_kind_is_told_from_the_others() -> None:
    kinds = (mint_key(), mint_token(), mint_operator_token())
    assert [is_token(each) for each in kinds] == [False, True, False]
    assert [is_operator_token(each) for each in kinds] == [False, False, True]
    assert len({mint_operator_token() for _ in range(100)}) == 100


async def test_a_token_is_made_found_listed_and_revoked(tmp_path: Path) -> None:
    now = 1000.0
    async with await TokenStore.open(url_of(tmp_path / "home" / "t.db"), clock=lambda: now) as tokens:
        token, record = await tokens.create("gpu1")
        now = 1001.0
        _, other = await tokens.create("gpu2")
        assert record.id.startswith("token_")
        assert await tokens.find(token) == record
        assert await tokens.find(mint_token()) is None
        assert await tokens.find("no token at all") is None
        assert await tokens.list_tokens() == [record, other]
        now = 1500.0
        revoked = await tokens.revoke(record.id)
        assert revoked is not None
        assert revoked.revoked_unix_s == 1500
        now = 1600.0
        assert await tokens.revoke(record.id) == revoked == await tokens.find(token)
        assert await tokens.revoke("token_nope") is None
    stored = b"".join(path.read_bytes() for path in (tmp_path / "home").glob("t.db*"))
    assert token[12:].encode() not in stored


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 129])
async def test_bad_names(tmp_path: Path, name: str) -> None:
    async with await TokenStore.open(url_of(tmp_path / "t.db")) as tokens:
        with pytest.raises(MantlerError, match="name: must be 1 to 128"):
            await tokens.create(name)


async def test_a_broken_database_is_unavailable(tmp_path: Path) -> None:
    async with await TokenStore.open(url_of(tmp_path / "t.db")) as tokens:
        database = sqlite3.connect(tmp_path / "t.db")
        database.execute("DROP TABLE machine_tokens")
        database.close()
        with pytest.raises(MantlerError) as raised:
            await tokens.list_tokens()
    assert raised.value.code is ErrorCode.STORE_UNAVAILABLE


def test_the_operators_token_is_private_and_stays(tmp_path: Path) -> None:
    home = tmp_path / "deep" / "home"
    assert read_operator_token(home) is None
    assert not home.exists()
    before = os.umask(0)
    try:
        token = operator_token(home)
    finally:
        os.umask(before)
    assert is_operator_token(token)
    assert stat.S_IMODE((home / FILE).stat().st_mode) == 0o600
    assert stat.S_IMODE(home.stat().st_mode) == 0o700
    assert [path.name for path in home.iterdir()] == [FILE]
    assert operator_token(home) == read_operator_token(home) == token
    (home / FILE).unlink()
    assert operator_token(home) != token


@pytest.mark.parametrize("content", [b"", b"\n", b"mo_live_", b"mk_live_" + b"a" * 40, b"\xff" * 40])
def test_a_file_without_a_token_lets_nobody_in(tmp_path: Path, content: bytes) -> None:
    (tmp_path / FILE).write_bytes(content)
    with pytest.raises(MantlerError, match="holds no operator's token"):
        operator_token(tmp_path)
    assert (tmp_path / FILE).read_bytes() == content


def _make(home: str, barrier: Any, made: Any) -> None:
    barrier.wait()
    made.put(operator_token(Path(home)))


def test_processes_that_make_it_at_once_have_the_same_one(tmp_path: Path) -> None:
    context = multiprocessing.get_context("spawn")
    count = 4
    for attempt in range(3):
        home = tmp_path / str(attempt)
        barrier, made = context.Barrier(count), context.SimpleQueue()
        processes = [context.Process(target=_make, args=(str(home), barrier, made)) for _ in range(count)]
        for process in processes:
            process.start()
        tokens = {made.get() for _ in processes}
        for process in processes:
            process.join()
        made.close()
        assert [process.exitcode for process in processes] == [0] * count
        assert tokens == {read_operator_token(home)}
        assert [path.name for path in home.iterdir()] == [FILE]
