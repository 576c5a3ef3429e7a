"""Every error that a client can meet, once.

Each row of the table says how a case looks over gRPC and over HTTP. Servicers and the facade look it up and
translate; they decide nothing themselves. The public message of a :class:`MantlerError` is written for the
client: it never holds the text of an exception that somebody else raised.

The gRPC status is kept as a name, so that this module imports nothing and pure code can raise its errors.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


@dataclass(frozen=True, slots=True)
class ErrorRow:
    """One row of the error table."""

    grpc_status: str
    """Name of a ``grpc.StatusCode``."""
    http_status: int
    type: str
    """``error.type`` of the OpenAI error object."""
    retryable: bool
    """Whether the same request may succeed later without a change."""


class ErrorCode(Enum):
    """The cases. A member's value is ``error.code`` of the OpenAI error object and the gRPC ``ErrorInfo.reason``."""

    INVALID_REQUEST = "invalid_request"
    INVALID_PARAMETER = "invalid_parameter"
    UNSUPPORTED_PARAMETER = "unsupported_parameter"
    CONTEXT_LENGTH_EXCEEDED = "context_length_exceeded"
    INVALID_API_KEY = "invalid_api_key"
    MODEL_NOT_ALLOWED = "model_not_allowed"
    INVALID_TOKEN = "invalid_token"  # noqa: S105 - the name of an error
    MODEL_NOT_FOUND = "model_not_found"
    MACHINE_NOT_FOUND = "machine_not_found"
    MACHINE_EXISTS = "machine_exists"
    ROUTE_NOT_FOUND = "route_not_found"
    METHOD_NOT_ALLOWED = "method_not_allowed"
    REQUEST_TOO_LARGE = "request_too_large"
    UNSUPPORTED_MEDIA_TYPE = "unsupported_media_type"
    RATE_LIMIT_EXCEEDED = "rate_limit_exceeded"
    QUEUE_FULL = "queue_full"
    CANCELLED = "cancelled"
    MACHINE_OFFLINE = "machine_offline"
    RUNTIME_UNAVAILABLE = "runtime_unavailable"
    STORE_UNAVAILABLE = "store_unavailable"
    DEADLINE_EXCEEDED = "deadline_exceeded"
    INTERNAL_ERROR = "internal_error"


TABLE: dict[ErrorCode, ErrorRow] = {
    ErrorCode.INVALID_REQUEST: ErrorRow("INVALID_ARGUMENT", 400, "invalid_request_error", False),
    ErrorCode.INVALID_PARAMETER: ErrorRow("INVALID_ARGUMENT", 400, "invalid_request_error", False),
    ErrorCode.UNSUPPORTED_PARAMETER: ErrorRow("INVALID_ARGUMENT", 400, "invalid_request_error", False),
    ErrorCode.CONTEXT_LENGTH_EXCEEDED: ErrorRow("INVALID_ARGUMENT", 400, "invalid_request_error", False),
    ErrorCode.INVALID_API_KEY: ErrorRow("UNAUTHENTICATED", 401, "authentication_error", False),
    ErrorCode.MODEL_NOT_ALLOWED: ErrorRow("PERMISSION_DENIED", 403, "permission_error", False),
    ErrorCode.MODEL_NOT_FOUND: ErrorRow("NOT_FOUND", 404, "not_found_error", False),
    ErrorCode.INVALID_TOKEN: ErrorRow("UNAUTHENTICATED", 401, "authentication_error", False),
    ErrorCode.MACHINE_NOT_FOUND: ErrorRow("NOT_FOUND", 404, "not_found_error", False),
    ErrorCode.MACHINE_EXISTS: ErrorRow("ALREADY_EXISTS", 409, "invalid_request_error", False),
    ErrorCode.ROUTE_NOT_FOUND: ErrorRow("UNIMPLEMENTED", 404, "not_found_error", False),
    ErrorCode.METHOD_NOT_ALLOWED: ErrorRow("UNIMPLEMENTED", 405, "invalid_request_error", False),
    ErrorCode.REQUEST_TOO_LARGE: ErrorRow("INVALID_ARGUMENT", 413, "invalid_request_error", False),
    ErrorCode.UNSUPPORTED_MEDIA_TYPE: ErrorRow("INVALID_ARGUMENT", 415, "invalid_request_error", False),
    ErrorCode.RATE_LIMIT_EXCEEDED: ErrorRow("RESOURCE_EXHAUSTED", 429, "rate_limit_error", True),
    ErrorCode.QUEUE_FULL: ErrorRow("RESOURCE_EXHAUSTED", 429, "rate_limit_error", True),
    ErrorCode.CANCELLED: ErrorRow("CANCELLED", 499, "cancelled", False),
    ErrorCode.MACHINE_OFFLINE: ErrorRow("UNAVAILABLE", 503, "service_unavailable", True),
    ErrorCode.RUNTIME_UNAVAILABLE: ErrorRow("UNAVAILABLE", 503, "service_unavailable", True),
    ErrorCode.STORE_UNAVAILABLE: ErrorRow("UNAVAILABLE", 503, "service_unavailable", True),
    ErrorCode.DEADLINE_EXCEEDED: ErrorRow("DEADLINE_EXCEEDED", 504, "timeout_error", True),
    ErrorCode.INTERNAL_ERROR: ErrorRow("INTERNAL", 500, "internal_error", False),
}


class MantlerError(Exception):
    """An error for a client, raised anywhere and translated at the border.

    Args:
        code: the row of the table.
        message: a sentence for the client. Names the field and the allowed range where input is at fault.
        param: the request field at fault, as the client spelled it.
        retry_after_s: seconds after which a retry makes sense, for the retryable codes.
    """

    def __init__(
        self,
        code: ErrorCode,
        message: str,
        *,
        param: str | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.param = param
        self.retry_after_s = retry_after_s

    @property
    def row(self) -> ErrorRow:
        """This error's row of the table."""
        return TABLE[self.code]

    def __repr__(self) -> str:
        return f"MantlerError({self.code.value}, {self.message!r}, param={self.param!r})"


def invalid(param: str, message: str) -> MantlerError:
    """The 400 for a bad value of ``param``. ``message`` says what is allowed."""
    return MantlerError(ErrorCode.INVALID_PARAMETER, f"{param}: {message}", param=param)


def unsupported(param: str, message: str = "is not supported yet") -> MantlerError:
    """The 400 for a known option that cannot be honoured."""
    return MantlerError(ErrorCode.UNSUPPORTED_PARAMETER, f"{param} {message}.", param=param)


def internal() -> MantlerError:
    """The 500 for our own bug. What happened goes to the log, not to the client."""
    return MantlerError(ErrorCode.INTERNAL_ERROR, "The server had an internal error. It has been logged.")
