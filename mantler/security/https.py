"""TLS for the facade's HTTP server."""

from __future__ import annotations

import ssl

from mantler.security.files import TlsFiles, Watched


def server_context(files: TlsFiles) -> ssl.SSLContext | None:
    """What a server needs, or ``None`` where the settings name no files; they are read again when they change.

    Raises :class:`~mantler.security.errors.SecurityError` where they cannot be used.
    """
    if not files:
        return None
    watched = Watched(files, files.read(), lambda _: _context(files))

    def use_newest(connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = watched.newest()

    context = _context(files)
    # It runs on each handshake, whether or not the client names a server.
    context.sni_callback = use_newest
    return context


def _context(files: TlsFiles) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    if files.cert is None:
        raise AssertionError("files that were read have a certificate")
    context.load_cert_chain(files.cert, files.key)
    return context


def pinned_context(files: TlsFiles) -> ssl.SSLContext:
    """For a client on the server's own machine: takes the certificate in ``files`` and no other, whatever its names."""
    context = ssl.create_default_context(cafile=files.cert)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    return context
