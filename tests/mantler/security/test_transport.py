"""Real handshakes, and connections that are refused before there is any."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import grpc
import pytest

from mantler.client import RuntimeClient
from mantler.errors import ErrorCode, MantlerError
from mantler.security.errors import SecurityError
from mantler.security.transport import Security
from tests.authority import LONG_AGO, Authority
from tests.fake_runtime import FakeRuntime


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "certs")


async def answers(address: str, security: Security | None) -> bool:
    """Whether a runtime takes a client with ``security``, or else refuses it at once."""
    async with RuntimeClient(address, security) as client:
        try:
            await client.list_models(timeout_s=20.0)
        except MantlerError as error:
            if error.code is ErrorCode.MACHINE_OFFLINE:
                return False
            raise
    return True


async def test_a_client_that_knows_the_authority_is_served(authority: Authority) -> None:
    async with FakeRuntime(security=authority.security("server", asks=False)) as runtime:
        assert await answers(runtime.address, authority.security("client", shows=False))
        assert await answers(runtime.address, authority.security("client"))


async def test_a_client_without_tls_is_not(authority: Authority) -> None:
    async with FakeRuntime(security=authority.security("server", asks=False)) as runtime:
        assert not await answers(runtime.address, None)


async def test_tls_does_not_fall_back_to_plaintext(authority: Authority) -> None:
    async with FakeRuntime() as runtime:
        assert not await answers(runtime.address, authority.security("client"))


async def test_a_server_of_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    other = Authority(tmp_path / "other")
    async with FakeRuntime(security=other.security("server", asks=False)) as runtime:
        assert not await answers(runtime.address, authority.security("client"))


async def test_a_certificate_counts_for_the_hosts_that_it_names(authority: Authority) -> None:
    async with FakeRuntime("0.0.0.0:0", authority.security("server")) as runtime:
        _, port = runtime.address.split(":")
        for host in ("127.0.0.1", "localhost"):
            assert await answers(f"{host}:{port}", authority.security("client"))
        assert not await answers(f"127.0.0.2:{port}", authority.security("client"))
        authority.issue("server", ["127.0.0.2"])
        assert await answers(f"127.0.0.2:{port}", authority.security("client"))


async def test_both_sides_show_certificates(authority: Authority) -> None:
    async with FakeRuntime(security=authority.security("server")) as runtime:
        assert await answers(runtime.address, authority.security("client"))


async def test_a_client_without_a_certificate_is_refused(authority: Authority) -> None:
    async with FakeRuntime(security=authority.security("server")) as runtime:
        assert not await answers(runtime.address, authority.security("client", shows=False))


async def test_a_client_of_another_authority_is_refused(authority: Authority, tmp_path: Path) -> None:
    stranger = Authority(tmp_path / "other").security("client")
    knowing = replace(stranger, material=replace(stranger.material, authorities=authority.certificate.read_bytes()))
    async with FakeRuntime(security=authority.security("server")) as runtime:
        assert not await answers(runtime.address, knowing)


async def test_an_expired_client_is_refused(authority: Authority) -> None:
    security = authority.security("client")
    old = authority.issue("client", now=LONG_AGO)
    assert old.key is not None
    assert old.ends < datetime.now(UTC)
    material = replace(security.material, chain=old.certificate.read_bytes(), key=old.key.read_bytes())
    async with FakeRuntime(security=authority.security("server")) as runtime:
        assert not await answers(runtime.address, replace(security, material=material))


async def test_an_expired_server_is_refused(authority: Authority) -> None:
    security = authority.security("server", asks=False)
    old = authority.issue("server", now=LONG_AGO)
    assert old.key is not None
    material = replace(
        security.material, chain=old.certificate.read_bytes(), key=old.key.read_bytes(), stamps=security.files.stamps()
    )
    async with FakeRuntime(security=replace(security, material=material)) as runtime:
        assert not await answers(runtime.address, authority.security("client"))


async def test_a_server_takes_new_files_up_while_it_runs(authority: Authority, tmp_path: Path) -> None:
    async with FakeRuntime(security=authority.security("server", asks=False)) as runtime:
        client = authority.security("client", shows=False)
        assert await answers(runtime.address, client)
        other = Authority(tmp_path / "other")
        issued = other.issue("server")
        assert issued.key is not None
        (authority.folder / "server.key").write_bytes(issued.key.read_bytes())
        # Half of a change: the old certificate stays.
        assert await answers(runtime.address, client)
        (authority.folder / "server.pem").write_bytes(issued.certificate.read_bytes())
        assert not await answers(runtime.address, client)
        assert await answers(runtime.address, other.security("client"))


@asynccontextmanager
async def unstarted() -> AsyncIterator[grpc.aio.Server]:
    server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
    yield server
    await server.stop(None)


async def test_nobody_listens_in_the_clear_beyond_loopback() -> None:
    async with unstarted() as server:
        with pytest.raises(SecurityError, match=r"^0\.0\.0\.0:0 can be reached from other machines") as caught:
            Security().listen(server, "0.0.0.0:0")
        assert "`mantler certs`" in str(caught.value.hint)
        assert "--insecure" in str(caught.value.hint)
        assert Security().listen(server, "127.0.0.1:0") > 0


async def test_nobody_connects_in_the_clear_beyond_loopback() -> None:
    with pytest.raises(SecurityError, match=r"^192\.0\.2\.1:50051 is beyond this machine, and gRPC to it needs TLS$"):
        RuntimeClient("192.0.2.1:50051")
    async with RuntimeClient("192.0.2.1:50051", Security(insecure=True)) as client:
        assert client.address == "192.0.2.1:50051"


@pytest.mark.parametrize(
    ("guarded", "words"),
    [
        (False, "anyone who reaches 0.0.0.0:0 can run and load models; prompts and answers travel unencrypted"),
        (True, "whoever sees the traffic of 0.0.0.0:0 can read its keys; prompts and answers travel unencrypted"),
    ],
)
async def test_what_is_left_open_is_told_in_one_line(
    guarded: bool, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    async with unstarted() as server:
        Security(insecure=True).listen(server, "0.0.0.0:0", guarded=guarded)
    assert [(record.levelno, record.getMessage()) for record in caplog.records] == [(logging.WARNING, words)]


async def test_tls_without_an_authority_is_told_to_be_open(
    authority: Authority, caplog: pytest.LogCaptureFixture
) -> None:
    async with unstarted() as server:
        authority.security("server").listen(server, "0.0.0.0:0")
        assert not caplog.records
        authority.security("server", asks=False).listen(server, "0.0.0.0:0")
    (record,) = caplog.records
    assert record.getMessage() == (
        "anyone who reaches 0.0.0.0:0 can run and load models; with tls_ca it asks them for a certificate"
    )


async def test_loopback_is_quiet(caplog: pytest.LogCaptureFixture) -> None:
    async with unstarted() as server:
        Security(insecure=True).listen(server, "127.0.0.1:0")
    assert not caplog.records


async def test_a_server_needs_a_certificate_and_a_client_an_authority(authority: Authority) -> None:
    async with unstarted() as server:
        with pytest.raises(SecurityError, match=r"^tls_cert: a server that uses tls_ca needs"):
            authority.security("a", shows=False).listen(server, "127.0.0.1:0")
    with pytest.raises(SecurityError, match=r"^tls_ca: a client needs it"):
        RuntimeClient("127.0.0.1:1", authority.security("a", asks=False))


async def test_a_certificate_is_held_against_the_own_host(authority: Authority) -> None:
    security = authority.security("a")
    for address in ("127.0.0.1:1", "LOCALHOST:1", "[::1]:1"):
        security.check_own_host(address)
    with pytest.raises(SecurityError, match=r"^tls_cert: .*a\.pem does not name 192\.0\.2\.1$") as caught:
        security.check_own_host("192.0.2.1:1")
    assert "it names localhost, 127.0.0.1, ::1;" in str(caught.value.hint)
    Security().check_own_host("192.0.2.1:1")
