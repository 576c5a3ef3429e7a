"""Server reflection that also knows methods.

A client may ask for the file of a method, ``package.Service.Method``
(https://github.com/grpc/grpc/blob/master/src/proto/grpc/reflection/v1alpha/reflection.proto); ghz does. protobuf's
pool finds messages, fields, enums and services by their name, and methods only when it is asked for a method.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import grpc
from google.protobuf import descriptor_pool
from google.protobuf.descriptor import FileDescriptor
from google.protobuf.descriptor_pool import DescriptorPool
from grpc_reflection.v1alpha import reflection


class MethodAwarePool:
    """The default descriptor pool, in which methods are symbols, too."""

    def __init__(self) -> None:
        self._pool = descriptor_pool.Default()

    def FindFileContainingSymbol(self, symbol: str) -> FileDescriptor:  # noqa: N802 - protobuf's name
        """The file that declares ``symbol``. Raises ``KeyError``."""
        try:
            return self._pool.FindFileContainingSymbol(symbol)
        except KeyError:
            file: FileDescriptor = self._pool.FindMethodByName(symbol).containing_service.file
            return file

    def __getattr__(self, name: str) -> Any:
        return getattr(self._pool, name)


def enable_reflection(server: grpc.aio.Server, services: Iterable[str]) -> None:
    """Adds reflection to ``server``, listing ``services`` (full names) and itself."""
    reflection.enable_server_reflection(
        (*services, reflection.SERVICE_NAME), server, pool=cast(DescriptorPool, MethodAwarePool())
    )
