"""gRPC servers and channels: encrypted, or on this machine, or left open by somebody who said so."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Self

import grpc

from mantler.config import GrpcSettings, split_address
from mantler.security.errors import SecurityError
from mantler.security.files import Material, TlsFiles, Watched, grpc_files, hosts_of
from mantler.security.loopback import is_loopback, is_socket

_HINT = "`mantler certs` makes certificates for both sides; --insecure allows it as it is"
_log = logging.getLogger("mantler.security")


@dataclass(frozen=True, slots=True)
class Security:
    """How this process's gRPC connections are guarded. Without material they are plaintext.

    With material there is no plaintext on the network at all, on loopback neither: what a process sends does not depend
    on where.
    """

    files: TlsFiles = field(default_factory=TlsFiles)
    material: Material = field(default_factory=Material)
    insecure: bool = False
    """Whether plaintext may go beyond loopback."""

    @classmethod
    def load(cls, settings: GrpcSettings) -> Self:
        """Reads the files of ``settings``. Raises :class:`SecurityError` where one cannot be used."""
        files = grpc_files(settings)
        return cls(files, files.read(), settings.insecure)

    @property
    def encrypts(self) -> bool:
        """Whether connections use TLS."""
        return bool(self.files)

    def listen(self, server: grpc.aio.Server, address: str, *, guarded: bool = False) -> int:
        """Binds ``server`` to ``address`` (``HOST:PORT``) and returns the port.

        What is open to others is told in one line of the log.

        Args:
            guarded: whether callers show a key with their requests.

        Raises: :class:`SecurityError` where :meth:`check_listening` does, ``RuntimeError`` if it cannot be bound.
        """
        self.check_listening([address])
        if (risk := self._risk(address, guarded)) is not None:
            _log.warning("%s", risk)
        if not self.encrypts or is_socket(address):
            return server.add_insecure_port(address)
        return server.add_secure_port(address, self.server_credentials())

    def channel(self, address: str, options: Sequence[tuple[str, int]]) -> grpc.aio.Channel:
        """A channel to ``address``. Raises :class:`SecurityError` where :meth:`check_dialing` does."""
        self.check_dialing([address])
        if not self.encrypts or is_socket(address):
            return grpc.aio.insecure_channel(address, options=options)
        return grpc.aio.secure_channel(address, self.channel_credentials(), options=options)

    def check_listening(self, addresses: Iterable[str]) -> None:
        """Raises :class:`SecurityError` if a server of this process may not listen at one of ``addresses``."""
        if self.encrypts and self.material.chain is None:
            raise SecurityError(
                "tls_cert: a server that uses tls_ca needs tls_cert and tls_key, too",
                "`mantler certs issue` makes both",
            )
        if (address := self._exposed(addresses)) is not None:
            raise SecurityError(f"{address} can be reached from other machines, and gRPC there needs TLS", _HINT)

    def check_dialing(self, addresses: Iterable[str]) -> None:
        """Raises :class:`SecurityError` if a client of this process may not connect to one of ``addresses``."""
        if self.encrypts and self.material.authorities is None:
            raise SecurityError(
                "tls_ca: a client needs it to tell the right server from others",
                "name the file of the authority that issued the server's certificate",
            )
        if (address := self._exposed(addresses)) is not None:
            raise SecurityError(f"{address} is beyond this machine, and gRPC to it needs TLS", _HINT)

    def check_own_host(self, address: str) -> None:
        """Raises :class:`SecurityError` if a client that looks for this process at ``address`` would refuse it."""
        from cryptography import x509

        host, _ = split_address(address)
        if self.material.chain is None:
            return
        named = hosts_of(x509.load_pem_x509_certificate(self.material.chain))
        if not {host.lower(), f"*.{host.lower().partition('.')[2]}"} & {name.lower() for name in named}:
            raise SecurityError(
                f"tls_cert: the certificate in {self.files.cert} does not name {host}",
                f"it names {', '.join(named) or 'no host'}; `mantler certs issue` names the own machine besides",
            )

    def server_credentials(self) -> grpc.ServerCredentials:
        """TLS with the certificate, for callers with one of the authorities where these are known.

        The files are looked at on each handshake: connections that begin after a change see the new ones.
        """
        watched = Watched(self.files, self.material, _server_configuration)
        return grpc.dynamic_ssl_server_credentials(
            watched.newest(),
            watched.newest,
            require_client_authentication=self.material.authorities is not None,
        )

    def channel_credentials(self) -> grpc.ChannelCredentials:
        """TLS to servers of the authorities. A channel keeps its certificate for life."""
        return grpc.ssl_channel_credentials(self.material.authorities, self.material.key, self.material.chain)

    def _exposed(self, addresses: Iterable[str]) -> str | None:
        """The first of ``addresses`` that plaintext would leave this machine at, if it must not."""
        if self.encrypts or self.insecure:
            return None
        return next((address for address in addresses if not is_loopback(address)), None)

    def _risk(self, address: str, guarded: bool) -> str | None:
        """What others can do who reach a server at ``address``."""
        if is_loopback(address):
            return None
        anyone = f"anyone who reaches {address} can run and load models"
        if not self.encrypts:
            kept = f"whoever sees the traffic of {address} can read its keys" if guarded else anyone
            return f"{kept}; prompts and answers travel unencrypted"
        if self.material.authorities is None and not guarded:
            return f"{anyone}; with tls_ca it asks them for a certificate"
        return None


def _server_configuration(material: Material) -> grpc.ServerCertificateConfiguration:
    if material.key is None or material.chain is None:
        raise AssertionError("a server was checked to have a certificate")
    return grpc.ssl_server_certificate_configuration([(material.key, material.chain)], material.authorities)
