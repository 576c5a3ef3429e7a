"""REST over TLS, machines behind TLS, and what is said of plaintext."""

from __future__ import annotations

import ssl
from pathlib import Path

import aiohttp
import pytest

from facade.app import running
from mantler.security.errors import SecurityError
from tests.authority import Authority
from tests.facade.conftest import AUTH, CHAT, chat, make_settings
from tests.fake_runtime import FakeRuntime


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "certs")


async def ask(url: str, authority: Authority) -> int:
    """The status of a chat completion, asked for on a connection of its own."""
    trusting = ssl.create_default_context(cafile=authority.certificate)
    async with (
        aiohttp.ClientSession(connector=aiohttp.TCPConnector(ssl=trusting)) as http,
        http.post(f"{url}{CHAT}", json=chat(), headers=AUTH) as response,
    ):
        await response.read()
        return response.status


async def test_rest_serves_tls_and_takes_new_certificates_up(authority: Authority, tmp_path: Path) -> None:
    issued = authority.issue("web")
    async with FakeRuntime() as runtime:
        settings = make_settings(tmp_path, runtime.address, http_tls_cert=issued.certificate, http_tls_key=issued.key)
        async with running(settings) as (host, port, _):
            url = f"https://{host}:{port}"
            assert await ask(url, authority) == 200
            other = Authority(tmp_path / "other")
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await ask(url, other)
            renewed = other.issue("web")
            assert issued.key is not None
            assert renewed.key is not None
            issued.key.write_bytes(renewed.key.read_bytes())
            assert await ask(url, authority) == 200
            issued.certificate.write_bytes(renewed.certificate.read_bytes())
            assert await ask(url, other) == 200
            with pytest.raises(aiohttp.ClientConnectorCertificateError):
                await ask(url, authority)


async def test_bad_files_of_https_stop_the_start(authority: Authority, tmp_path: Path) -> None:
    settings = make_settings(tmp_path, "127.0.0.1:1", http_tls_cert=authority.issue("web").certificate)
    with pytest.raises(SecurityError, match=r"^http_tls_key: must be given beside http_tls_cert$"):
        async with running(settings):
            pass


async def test_machines_are_reached_over_mutual_tls(authority: Authority, tmp_path: Path) -> None:
    async with (
        FakeRuntime(security=authority.security("machine")) as runtime,
        running(make_settings(tmp_path, runtime.address, **authority.settings("facade"))) as (host, port, _),
    ):
        assert await ask(f"http://{host}:{port}", authority) == 200
    async with (
        FakeRuntime(security=authority.security("machine")) as runtime,
        running(make_settings(tmp_path, runtime.address)) as (host, port, _),
    ):
        assert await ask(f"http://{host}:{port}", authority) == 503


async def test_a_machine_elsewhere_needs_tls(tmp_path: Path) -> None:
    with pytest.raises(SecurityError, match=r"^192\.0\.2\.1:50051 is beyond this machine"):
        async with running(make_settings(tmp_path, "192.0.2.1:50051")):
            pass


async def test_plaintext_beyond_loopback_is_told(
    authority: Authority, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async with FakeRuntime() as runtime:
        open_to_all = make_settings(tmp_path, runtime.address, insecure=True, machines=["192.0.2.1:1"])
        async with running(open_to_all.model_copy(update={"http": "0.0.0.0:0"})):
            pass
        told = [record.getMessage() for record in caplog.records]
        assert told == [
            "prompts and answers travel unencrypted to 192.0.2.1:1",
            "keys, prompts and answers travel unencrypted to 0.0.0.0:0: set http_tls_cert and http_tls_key, or put a "
            "proxy with TLS before it",
        ]
        caplog.clear()
        issued = authority.issue("web")
        settings = make_settings(tmp_path, runtime.address, http_tls_cert=issued.certificate, http_tls_key=issued.key)
        async with running(settings.model_copy(update={"http": "0.0.0.0:0"})):
            pass
        assert not caplog.records
