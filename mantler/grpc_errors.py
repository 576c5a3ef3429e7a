"""Carries :class:`~mantler.errors.MantlerError` over gRPC and back.

A status travels with ``google.rpc`` details (https://google.aip.dev/193): ``ErrorInfo`` with our code as its
reason and the parameter in its metadata, and ``RetryInfo`` where a retry makes sense.
"""

from __future__ import annotations

import logging
import math
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any, cast

import grpc
from google.protobuf.message import DecodeError
from google.rpc import error_details_pb2, status_pb2

from mantler.errors import TABLE, ErrorCode, MantlerError, internal

DOMAIN = "mantler"
"""``ErrorInfo.domain`` of our errors."""

MAX_MESSAGE_CHARS = 400
"""A message may quote the client. gRPC drops a status whose trailers pass 8 KB and reports that it ran out of resources
instead; a message travels twice, percent-encoded (up to 12 bytes per character) and in base64 (up to 6)."""

DETAILS_KEY = "grpc-status-details-bin"
"""Trailing metadata key of the serialised ``google.rpc.Status``."""

logger = logging.getLogger(__name__)

_FALLBACK: dict[grpc.StatusCode, tuple[ErrorCode, str]] = {
    grpc.StatusCode.INVALID_ARGUMENT: (ErrorCode.INVALID_REQUEST, "The runtime refused the request as invalid."),
    grpc.StatusCode.UNAUTHENTICATED: (ErrorCode.RUNTIME_UNAVAILABLE, "The runtime did not accept this caller."),
    grpc.StatusCode.NOT_FOUND: (ErrorCode.MODEL_NOT_FOUND, "The runtime does not know the model."),
    grpc.StatusCode.CANCELLED: (ErrorCode.CANCELLED, "The request was cancelled."),
    grpc.StatusCode.UNAVAILABLE: (ErrorCode.MACHINE_OFFLINE, "The machine is offline or its runtime is not running."),
    grpc.StatusCode.DEADLINE_EXCEEDED: (ErrorCode.DEADLINE_EXCEEDED, "The request passed its deadline."),
}


def status_code(error: MantlerError) -> grpc.StatusCode:
    """The gRPC status of ``error``."""
    return grpc.StatusCode[error.row.grpc_status]


def to_status(error: MantlerError) -> status_pb2.Status:
    """``error`` as a ``google.rpc.Status`` with its details; a long message is cut."""
    code: int = status_code(error).value[0]
    status = status_pb2.Status(code=code, message=_cut(error.message))
    info = error_details_pb2.ErrorInfo(reason=error.code.value, domain=DOMAIN)
    if error.param is not None:
        info.metadata["param"] = error.param
    status.details.add().Pack(info)
    if error.retry_after_s is not None:
        retry = error_details_pb2.RetryInfo()
        retry.retry_delay.FromNanoseconds(math.ceil(error.retry_after_s * 1e9))
        status.details.add().Pack(retry)
    return status


async def abort(
    context: grpc.aio.ServicerContext[object, object], error: MantlerError, trailers: Iterable[tuple[str, str]] = ()
) -> None:
    """Ends an RPC with ``error``. Always raises ``grpc.aio.AbortError``, which handlers must let pass.

    Args:
        trailers: trailing metadata besides the details.
    """
    status = to_status(error)
    await context.abort(status_code(error), status.message, (*trailers, (DETAILS_KEY, status.SerializeToString())))


@asynccontextmanager
async def border(context: grpc.aio.ServicerContext[Any, Any], what: str) -> AsyncIterator[None]:
    """Ends the RPC with the status of whatever leaves the block.

    Our errors keep their row of the table; anything else is a bug: it is logged with ``what`` and the client learns
    nothing of it. Cancellation and an abort that has happened already pass through.
    """
    try:
        yield
    except grpc.aio.AbortError:
        raise
    except Exception as error:
        await abort(context, public(error, what))


def public(error: Exception, what: str) -> MantlerError:
    """What a caller learns of ``error``: our own errors as they are, and of a bug, which is logged, only that it is."""
    if isinstance(error, MantlerError):
        return error
    logger.error("%s failed", what, exc_info=error)
    return internal()


def from_rpc_error(error: grpc.aio.AioRpcError) -> MantlerError:
    """What a failed call means to us.

    A status without our details comes from gRPC itself or from a stranger: its text is not passed on.
    """
    return from_trailers(error.code(), _trailers(error))


def carried(error: grpc.aio.AioRpcError) -> MantlerError | None:
    """The error that a failed call carries. ``None`` where gRPC itself or a stranger failed it."""
    return _carried(_trailers(error))


def from_trailers(status: grpc.StatusCode, trailers: Iterable[tuple[str, str | bytes]]) -> MantlerError:
    """What :func:`from_rpc_error` says, of a status and its trailing metadata."""
    known = _carried(trailers)
    if known is not None:
        return known
    code, message = _FALLBACK.get(status, (ErrorCode.INTERNAL_ERROR, "The runtime had an internal error."))
    retry_after_s = 1.0 if TABLE[code].retryable and code is not ErrorCode.DEADLINE_EXCEEDED else None
    return MantlerError(code, message, retry_after_s=retry_after_s)


def from_status(serialised: bytes) -> MantlerError:
    """The error of a serialised ``google.rpc.Status`` that :func:`to_status` made."""
    known = _from_details(serialised)
    if known is None:
        logger.error("a status without our details: %r", serialised[:200])
        return internal()
    return known


def _trailers(error: grpc.aio.AioRpcError) -> Iterable[tuple[str, str | bytes]]:
    return cast("Iterable[tuple[str, str | bytes]]", error.trailing_metadata() or ())


def _carried(trailers: Iterable[tuple[str, str | bytes]]) -> MantlerError | None:
    details = dict(trailers).get(DETAILS_KEY)
    return _from_details(details) if isinstance(details, bytes) else None


def _cut(message: str) -> str:
    return message if len(message) <= MAX_MESSAGE_CHARS else message[: MAX_MESSAGE_CHARS - 1] + "…"


def _from_details(serialised: bytes) -> MantlerError | None:
    status = status_pb2.Status()
    try:
        status.ParseFromString(serialised)
    except DecodeError:
        return None
    code: ErrorCode | None = None
    param: str | None = None
    retry_after_s: float | None = None
    info = error_details_pb2.ErrorInfo()
    retry = error_details_pb2.RetryInfo()
    for detail in status.details:
        if detail.Unpack(info) and info.domain == DOMAIN:
            try:
                code = ErrorCode(info.reason)
            except ValueError:
                return None
            param = info.metadata.get("param")
        elif detail.Unpack(retry):
            retry_after_s = retry.retry_delay.ToNanoseconds() / 1e9
    if code is None:
        return None
    return MantlerError(code, status.message, param=param, retry_after_s=retry_after_s)
