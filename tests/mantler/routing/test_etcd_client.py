"""The client of etcd: pages, watches that hang, endpoints that do."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from mantler import etcd as etcd_module
from mantler.etcd import CompactedError, Etcd
from mantler.etcd_gateway import TIMEOUT_S, EtcdError, Message
from tests.etcd_server import EtcdServer
from tests.mantler.routing.etcd_mesh import cabled


async def put(etcd: Etcd, key: str, value: bytes) -> None:
    assert await etcd.replace(key, value, await etcd.grant(60), await etcd.get(key))


async def test_everything_is_read_page_by_page(server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_module, "PAGE_KEYS", 2)
    async with Etcd([server.url]) as etcd:
        for number in range(5):
            await put(etcd, f"/a/{number}", b"%d" % number)
        await put(etcd, "/b", b"")
        asked: list[Message] = []
        ask = etcd._gateway.ask

        async def noted(path: str, body: Message) -> Message:
            asked.append(dict(body))
            return await ask(path, body)

        monkeypatch.setattr(etcd._gateway, "ask", noted)
        revision, found = await etcd.range("/a/")
        assert [(each.key, each.value) for each in found] == [(f"/a/{n}", b"%d" % n) for n in range(5)]
        assert revision == found[-1].mod_revision + 1
        assert [page.get("revision") for page in asked] == [None, str(revision), str(revision)]


async def test_pages_get_shorter_where_keys_are_long(server: EtcdServer) -> None:
    async with Etcd([server.url]) as etcd:
        # More than a line may have.
        values = [bytes([number]) * 700_000 for number in range(30)]
        for number, value in enumerate(values):
            await put(etcd, f"/long/{number:02}", value)
        _, found = await etcd.range("/long/")
        assert [each.value for each in found] == values


async def test_a_key_that_is_no_text_is_read(server: EtcdServer) -> None:
    async with Etcd([server.url]) as etcd:
        await etcd._gateway.ask("kv/put", {"key": "L2H/", "value": "MQ=="})
        _, [found] = await etcd.range("/a")
        assert (found.key, found.value) == ("/a\\xff", b"1")


async def test_a_watch_that_hangs_goes_on_elsewhere(server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_module, "QUIET_S", 0.3)
    async with (
        cabled(server.url) as (url, cable),
        Etcd([url, server.url]) as etcd,
        Etcd([server.url]) as other,
        asyncio.timeout(10),
        aclosing(etcd.watch("/a", 1)) as changes,
    ):
        for number in range(4):
            await put(other, "/a", b"%d" % number)
            assert [change.value for change in await anext(changes)] == [b"%d" % number]
            if number == 1:
                cable.cut()


async def test_a_watch_without_news_misses_nothing(server: EtcdServer, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(etcd_module, "QUIET_S", 0.05)
    begun = asyncio.Semaphore(0)
    async with Etcd([server.url]) as etcd, asyncio.timeout(10):
        follow = etcd._gateway.follow

        def counted(path: str, body: Message, quiet_s: float) -> AsyncGenerator[Message, None]:
            begun.release()
            return follow(path, body, quiet_s)

        monkeypatch.setattr(etcd._gateway, "follow", counted)
        async with aclosing(etcd.watch("/a", 1)) as changes:
            waiting = asyncio.ensure_future(anext(changes))
            for _ in range(4):
                await begun.acquire()
            await put(etcd, "/a", b"1")
            assert [change.value for change in await waiting] == [b"1"]


async def test_an_endpoint_that_hangs_costs_a_second_once(server: EtcdServer) -> None:
    async with cabled(server.url) as (url, cable), Etcd([url, server.url]) as etcd:
        lease = await etcd.grant(60)
        cable.cut()
        began_s = time.monotonic()
        assert await etcd.keep_alive(lease)
        assert time.monotonic() - began_s >= TIMEOUT_S
        began_s = time.monotonic()
        for _ in range(3):
            assert await etcd.keep_alive(lease)
        assert time.monotonic() - began_s < TIMEOUT_S


async def test_a_frozen_etcd_is_an_error_in_time(server: EtcdServer) -> None:
    async with Etcd([server.url]) as etcd:
        lease = await etcd.grant(60)
        server.freeze()
        async with asyncio.timeout(5 * TIMEOUT_S):
            with pytest.raises(EtcdError, match="no answer"):
                await etcd.keep_alive(lease)
            with pytest.raises(EtcdError, match="no answer"):
                await anext(etcd.watch("/a", 1))


async def test_a_lease_says_which_keys_it_has(server: EtcdServer) -> None:
    async with Etcd([server.url]) as etcd:
        lease, other = await etcd.grant(60), await etcd.grant(60)
        assert not await etcd.put_beside("/a", "/b", b"", lease), "there is no /a"
        assert await etcd.replace("/a", b"1", lease, None)
        assert await etcd.put_beside("/a", "/b", b"", lease)
        assert await etcd.keys(lease) == {"/a", "/b"}
        assert await etcd.replace("/a", b"2", other, await etcd.get("/a"))
        assert await etcd.keys(lease) == {"/b"}
        assert not await etcd.put_beside("/a", "/b", b"", lease)
        await etcd.revoke(lease)
        assert await etcd.keys(lease) == frozenset()


async def test_users_are_let_in(server: EtcdServer) -> None:
    user = {"name": "root", "password": "secret"}
    async with Etcd([server.url]) as etcd:
        await etcd._gateway.ask("auth/user/add", user)
        await etcd._gateway.ask("auth/role/add", {"name": "root"})
        await etcd._gateway.ask("auth/user/grant", {"user": "root", "role": "root"})
        await etcd._gateway.ask("auth/enable", {})
        with pytest.raises(EtcdError, match="user name is empty"):
            await etcd.get("/a")
    async with Etcd([server.url], user="root", password="secret") as etcd:
        await put(etcd, "/a", b"1")
        etcd._gateway._token = "ended.1"
        assert await etcd.get("/b") is None, "a new token is asked for"
        async with aclosing(etcd.watch("/a", 1)) as changes:
            assert [change.value for change in await anext(changes)] == [b"1"]
    async with Etcd([server.url], user="root", password="wrong") as etcd:
        with pytest.raises(EtcdError, match="authentication failed"):
            await etcd.get("/a")


async def test_a_revision_that_is_gone_is_said(server: EtcdServer) -> None:
    async with Etcd([server.url]) as etcd:
        lease = await etcd.grant(60)
        for number in range(5):
            assert await etcd.replace("/a", b"%d" % number, lease, await etcd.get("/a"))
        revision, found = await etcd.range("/a")
        assert [each.value for each in found] == [b"4"]
        await etcd._gateway.ask("kv/compaction", {"revision": str(revision)})
        with pytest.raises(CompactedError):
            async for _ in etcd.watch("/a", 2):
                pass


async def test_an_etcd_that_is_not_there_is_said_in_words(server: EtcdServer) -> None:
    async with Etcd(["http://127.0.0.1:1", server.url]) as etcd:
        assert await etcd.get("/nothing") is None, "another endpoint answers"
        assert not await etcd.keep_alive("12345")
    async with Etcd(["http://127.0.0.1:1"]) as etcd:
        with pytest.raises(EtcdError, match=r"http://127\.0\.0\.1:1: Cannot connect"):
            await etcd.grant(2)
