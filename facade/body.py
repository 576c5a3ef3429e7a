"""Reads the body of a request."""

from __future__ import annotations

from aiohttp import hdrs, web

from mantler.errors import ErrorCode, MantlerError

_ENCODINGS = {"", "identity", "gzip", "deflate"}


async def read_json_body(request: web.Request, max_bytes: int) -> bytes:
    """The body, uncompressed, at most ``max_bytes``.

    Raises UNSUPPORTED_MEDIA_TYPE for a body that says it is not JSON, REQUEST_TOO_LARGE before reading one that says
    it is too long, and INVALID_REQUEST for one whose transfer or compression is broken.
    """
    kind = request.content_type
    if hdrs.CONTENT_TYPE in request.headers and not (kind == "application/json" or kind.endswith("+json")):
        raise MantlerError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "The body must be application/json.")
    if request.headers.get(hdrs.CONTENT_ENCODING, "").lower() not in _ENCODINGS:
        raise MantlerError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, "The body must be plain, gzip or deflate.")
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    try:
        return await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(max_bytes) from None
    except web.RequestPayloadError:
        raise MantlerError(ErrorCode.INVALID_REQUEST, "The body could not be read as it was sent.") from None


def _too_large(max_bytes: int) -> MantlerError:
    return MantlerError(ErrorCode.REQUEST_TOO_LARGE, f"The body may have at most {max_bytes} bytes.")
