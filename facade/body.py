"""Reads the body of a request."""

from __future__ import annotations

from aiohttp import hdrs, web

from mantler.errors import ErrorCode, MantlerError

_ENCODINGS = {"", "identity", "gzip", "deflate"}
_MAX_SHOWN_CHARS = 100


async def read_json_body(request: web.Request, max_bytes: int) -> bytes:
    """The body, uncompressed, at most ``max_bytes``.

    Raises UNSUPPORTED_MEDIA_TYPE for a body that says it is not JSON, REQUEST_TOO_LARGE before reading one that says
    it is too long, and INVALID_REQUEST for one whose transfer or compression is broken.
    """
    kind = request.content_type
    if hdrs.CONTENT_TYPE in request.headers and not (kind == "application/json" or kind.endswith("+json")):
        raise _unsupported(hdrs.CONTENT_TYPE, "must be JSON: send 'Content-Type: application/json'", kind)
    encoding = request.headers.get(hdrs.CONTENT_ENCODING, "")
    if encoding.lower() not in _ENCODINGS:
        raise _unsupported(hdrs.CONTENT_ENCODING, "must be plain, gzip or deflate", encoding)
    if (request.content_length or 0) > max_bytes:
        raise _too_large(max_bytes)
    try:
        body = await request.read()
    except web.HTTPRequestEntityTooLarge:
        raise _too_large(max_bytes) from None
    except web.RequestPayloadError:
        raise MantlerError(ErrorCode.INVALID_REQUEST, "The body could not be read as it was sent.") from None
    # aiohttp's own bound, of all addresses, may be higher, and a length that was said is of the compressed body.
    if len(body) > max_bytes:
        raise _too_large(max_bytes)
    return body


def _unsupported(header: str, wanted: str, got: str) -> MantlerError:
    shown = repr(got[:_MAX_SHOWN_CHARS])
    return MantlerError(ErrorCode.UNSUPPORTED_MEDIA_TYPE, f"The body {wanted}; got {header} {shown}.")


def _too_large(max_bytes: int) -> MantlerError:
    return MantlerError(ErrorCode.REQUEST_TOO_LARGE, f"The body may have at most {max_bytes} bytes.")
