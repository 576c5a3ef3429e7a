"""The application and the process around it."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import signal
import ssl
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import NamedTuple

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError

from facade.admission import Admission
from facade.connection import Runner
from facade.edge.admin import AdminServicer
from facade.edge.json_message import MessageReader
from facade.edge.mesh import MeshServicer
from facade.edge.server import EdgeServer, Served
from facade.edge.services import edge_services
from facade.edge.transcoding import routes
from facade.edge.tunnels import Tunnels
from facade.errors import translate_errors
from facade.limits import Limiters
from facade.middleware import add_headers, frame_exchange
from facade.routes.chat import chat_completions
from facade.routes.completions import completions
from facade.routes.health import health
from facade.routes.models import get_model, list_models
from facade.routes.openapi import get_docs, get_openapi
from facade.routes.tokens import detokenize, tokenize
from facade.services import Services
from facade.web_state import SERVICES
from mantler.config import FacadeSettings, join_address, split_address
from mantler.etcd import Etcd
from mantler.mesh.directory import Change, Directory
from mantler.mesh.machine import LoadReport
from mantler.routing.client import connected
from mantler.routing.etcd import EtcdMembership
from mantler.routing.memberships import Membership
from mantler.routing.registry import GATHER_S, Registry
from mantler.routing.view import View
from mantler.security.files import https_files
from mantler.security.https import server_context
from mantler.security.loopback import is_loopback
from mantler.security.transport import Security
from mantler.telemetry import log_event
from mantler.tenancy.database import Database
from mantler.tenancy.operator import operator_token
from mantler.tenancy.store import KeyStore
from mantler.tenancy.tokens import TokenStore

CLOSE_TIMEOUT_S = 5.0
"""How long connections may take to close once their requests are done."""
MAX_OTHER_CALLS = 20_000
"""Over gRPC, beside those that have places: two for each machine of the most that a mesh has, and watches of health."""

_log = logging.getLogger("facade")
_http_log = logging.getLogger("facade.http")
# What is no HTTP is not our failure, and aiohttp's message about it quotes the bytes, which may be a prompt's.
_http_log.addFilter(lambda record: not (record.exc_info and isinstance(record.exc_info[1], HttpProcessingError)))


def create_app(services: Services, served: Sequence[Served] = ()) -> web.Application:
    """The REST API, and the services of the edge as JSON. The caller closes what ``services`` hold."""
    app = web.Application(
        middlewares=[frame_exchange, translate_errors],
        client_max_size=services.settings.max_body_mb * 2**20,
    )
    app[SERVICES] = services
    app.on_response_prepare.append(add_headers)
    app.router.add_get("/health", health)
    app.router.add_get("/openapi.json", get_openapi)
    app.router.add_get("/docs", get_docs)
    app.router.add_get("/v1/models", list_models)
    app.router.add_get("/v1/models/{id:.+}", get_model)
    app.router.add_post("/v1/chat/completions", chat_completions)
    app.router.add_post("/v1/completions", completions)
    app.router.add_post("/v1/tokenize", tokenize)
    app.router.add_post("/v1/detokenize", detokenize)
    reader = MessageReader()

    async def close_reader(_: web.Application) -> None:
        reader.close()

    app.on_cleanup.append(close_reader)
    for each in served:
        if each.over_http:
            app.router.add_routes(routes(each, reader))
    return app


class Bound(NamedTuple):
    """Where a facade serves."""

    host: str
    port: int
    """Of HTTP."""
    grpc_port: int


@contextlib.asynccontextmanager
async def running(settings: FacadeSettings) -> AsyncIterator[Bound]:
    """Serves while the body runs; yields what is bound. Leaving drains, within ``drain_timeout_s``.

    Raises ``OSError`` if an address cannot be bound, ``MantlerError`` if the database cannot be opened or
    ``bootstrap_key`` has the wrong shape, and ``SecurityError`` if a machine may not be reached as the settings say.
    """
    security, tls = Security.load(settings), server_context(https_files(settings))
    _warn_of_plaintext(settings, encrypts_grpc=security.encrypts, encrypts_http=tls is not None)
    view = View(Directory())
    async with contextlib.AsyncExitStack() as stack:
        database = await Database.open(settings.database_url)
        stack.push_async_callback(database.close)
        keys, tokens = KeyStore(database), TokenStore(database)
        await _ensure_bootstrap_key(settings, keys)
        expected = any(token.revoked_unix_s is None for token in await tokens.list_tokens())
        registry = Registry(view, gather_s=GATHER_S if expected else 0)
        others: list[Membership] = [registry]
        if settings.etcd:
            etcd = await stack.enter_async_context(Etcd.of(settings))
            others.append(EtcdMembership(etcd, settings.etcd_prefix, view, security))
        tunnels = await stack.enter_async_context(Tunnels())
        client = await stack.enter_async_context(
            connected(
                settings.runtimes,
                resume_within_s=settings.resume_within_s,
                security=security,
                view=view,
                others=others,
            )
        )
        services = Services(settings, client, keys, Limiters(), Admission(settings.max_connections))
        admin = AdminServicer(client.operations, await _operator_token(settings))
        served = edge_services(services, MeshServicer(registry, tokens, tunnels, security), admin)
        edge = await stack.enter_async_context(EdgeServer(served, settings.max_connections + MAX_OTHER_CALLS))
        stack.push_async_callback(registry.close)

        def report(change: Change | None = None) -> None:
            if not isinstance(change, LoadReport):
                edge.report(bool(view.directory.models()))

        grpc_port = await edge.start(settings.grpc, security)
        report()
        stack.callback(view.directory.subscribe(report))
        app = create_app(services, served)
        async with _http(app, settings, tls) as (host, port):
            yield Bound(host, port, grpc_port)
            await edge.refuse()


@contextlib.asynccontextmanager
async def _http(
    app: web.Application, settings: FacadeSettings, tls: ssl.SSLContext | None
) -> AsyncIterator[tuple[str, int]]:
    """Serves ``app`` while the body runs, and drains it then."""
    # A handler is cancelled when its client leaves; that frees the runtime's slot.
    runner = Runner(app, handler_cancellation=True, access_log=None, logger=_http_log, shutdown_timeout=CLOSE_TIMEOUT_S)
    await runner.setup()
    try:
        site = web.TCPSite(runner, *split_address(settings.http), ssl_context=tls)
        await site.start()
        bound: tuple[str, int] = runner.addresses[0][:2]
        yield bound
        await site.stop()
        await app[SERVICES].admission.drain(settings.drain_timeout_s)
    finally:
        await runner.cleanup()


async def _ensure_bootstrap_key(settings: FacadeSettings, keys: KeyStore) -> None:
    if settings.bootstrap_key is not None:
        record = await keys.ensure(settings.bootstrap_key)
        if record.revoked_unix_s is not None:
            _log.warning("the bootstrap key was revoked and stays so: choose another one")


async def _operator_token(settings: FacadeSettings) -> str:
    if settings.operator_token is not None:
        return settings.operator_token
    return await asyncio.to_thread(operator_token, settings.home)


async def serve(
    settings: FacadeSettings,
    *,
    stop: asyncio.Event | None = None,
    on_bound: Callable[[str, int], None] | None = None,
) -> None:
    """Serves until SIGTERM, SIGINT or ``stop``, then drains. A second signal ends the process the hard way.

    Raises what :func:`running` raises.

    Args:
        on_bound: called with the host and the port once the server listens.
    """
    stop = stop or asyncio.Event()
    with _stopped_by_signals(stop):
        async with running(settings) as (host, port, grpc_port):
            log_event(
                _log,
                "serving",
                http=join_address(host, port),
                grpc=join_address(split_address(settings.grpc)[0], grpc_port),
                machines=",".join(settings.runtimes),
            )
            if on_bound is not None:
                on_bound(host, port)
            await stop.wait()
            log_event(_log, "draining", timeout_s=settings.drain_timeout_s)
    log_event(_log, "stopped")


def _warn_of_plaintext(settings: FacadeSettings, *, encrypts_grpc: bool, encrypts_http: bool) -> None:
    """One line for REST, which a proxy may guard, and one for machines that somebody chose to reach like this."""
    far = [address for address in settings.runtimes if not is_loopback(address)]
    if settings.insecure and far and not encrypts_grpc:
        _log.warning("prompts and answers travel unencrypted to %s", ", ".join(far))
    if not encrypts_http and not is_loopback(settings.http):
        _log.warning(
            "keys, prompts and answers travel unencrypted to %s: set http_tls_cert and http_tls_key, or put a proxy "
            "with TLS before it",
            settings.http,
        )


@contextlib.contextmanager
def _stopped_by_signals(stop: asyncio.Event) -> Iterator[None]:
    loop = asyncio.get_running_loop()
    signals = (signal.SIGTERM, signal.SIGINT)

    def on_signal() -> None:
        stop.set()
        for number in signals:
            loop.remove_signal_handler(number)

    for number in signals:
        loop.add_signal_handler(number, on_signal)
    try:
        yield
    finally:
        for number in signals:
            loop.remove_signal_handler(number)
