"""Into a mesh from a program of your own: through its facades with an API key, or past them, straight to its machines.

Both clients have the same methods, those of :class:`mantler.client.RuntimeClient` that ask models::

    async with facades(["gateway-1:50050", "gateway-2:50050"], api_key, security=security) as client:
        async with aclosing(client.generate(request, timeout_s=60)) as events:
            async for event in events: ...

Streams go on where a facade or a machine dies, without a token lost or repeated. Every failure is a ``MantlerError``.
"""

from __future__ import annotations

import ssl
from collections.abc import AsyncIterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager

from mantler.client import RuntimeClient
from mantler.etcd import Etcd
from mantler.mesh.directory import Directory
from mantler.routing.client import MeshClient, connected
from mantler.routing.edges import EdgeClient
from mantler.routing.etcd import EtcdMembership
from mantler.routing.memberships import Membership
from mantler.routing.view import View
from mantler.security.transport import Security

RESUME_WITHIN_S = 30.0


@asynccontextmanager
async def facades(
    addresses: Sequence[str],
    api_key: str,
    *,
    security: Security | None = None,
    resume_within_s: float = RESUME_WITHIN_S,
) -> AsyncIterator[EdgeClient]:
    """A client of the mesh whose facades serve gRPC at ``addresses`` (``HOST:PORT``), the first one preferred.

    Args:
        security: without it only this machine can be reached.
        resume_within_s: how long a stream without a facade waits for one.

    Raises: ``SecurityError`` where ``security`` does not allow an address, and ``ValueError`` where there is none or
    for a key that no header can hold.
    """
    if not addresses:
        raise ValueError("addresses must hold one at least")
    async with AsyncExitStack() as stack:
        clients = [
            await stack.enter_async_context(RuntimeClient(address, security, api_key=api_key)) for address in addresses
        ]
        yield EdgeClient(clients, resume_within_s=resume_within_s)


@asynccontextmanager
async def machines(
    addresses: Sequence[str] = (),
    *,
    etcd: Sequence[str] = (),
    etcd_prefix: str = "/mantler",
    etcd_user: str = "",
    etcd_password: str = "",
    etcd_tls: ssl.SSLContext | None = None,
    security: Security | None = None,
    resume_within_s: float = RESUME_WITHIN_S,
) -> AsyncIterator[MeshClient]:
    """A client of machines, chosen for each request as a facade does: no keys, no limits, one hop less.

    Args:
        addresses: of runtimes, ``HOST:PORT``.
        etcd: endpoints of an etcd where machines announce themselves, ``http://HOST:PORT``.
        etcd_prefix: beginning of the keys there.
        etcd_tls: for endpoints with https.
        security: without it only this machine can be reached. Machines want a certificate of their authority.
        resume_within_s: how long a stream that lost its machine waits for another one.

    Raises: ``SecurityError`` where ``security`` does not allow one of the addresses, and ``ValueError`` where neither
    addresses nor an etcd are given.
    """
    if not addresses and not etcd:
        raise ValueError("addresses or etcd must be given")
    view, security = View(Directory()), security or Security()
    async with AsyncExitStack() as stack:
        others: list[Membership] = []
        if etcd:
            asked = Etcd(etcd, user=etcd_user, password=etcd_password, tls=etcd_tls)
            others.append(EtcdMembership(await stack.enter_async_context(asked), etcd_prefix, view, security))
        yield await stack.enter_async_context(
            connected(addresses, resume_within_s=resume_within_s, security=security, view=view, others=others)
        )
