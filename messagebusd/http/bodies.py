"""Reading request bodies: bounded in size and time, whoever sends them."""

from __future__ import annotations

import asyncio

from aiohttp import web
from multidict import CIMultiDictProxy

from messagebusd.errors import LimitExceeded, MalformedRequest, RequestTimeout


async def read_body(request: web.BaseRequest, max_bytes: int, timeout_seconds: float) -> bytes:
    """The whole body. Raises LimitExceeded, RequestTimeout, or MalformedRequest for bad framing."""
    check_body(request.headers, request.content_length, max_bytes)
    content = request.content
    if content.is_eof():  # it came with the head: nothing to wait for
        body = content.read_nowait()
        if len(body) > max_bytes:
            raise _too_large(max_bytes)
        return body
    received = bytearray()
    try:
        async with asyncio.timeout(timeout_seconds):
            while chunk := await content.readany():
                received += chunk
                if len(received) > max_bytes:
                    raise _too_large(max_bytes)
    except TimeoutError:
        raise RequestTimeout(f"the body did not come within {timeout_seconds:g} seconds") from None
    except web.RequestPayloadError as error:
        raise MalformedRequest(f"the body is broken: {error}", code="invalid_body") from None
    return bytes(received)


def check_body(headers: CIMultiDictProxy[str], declared: int | None, max_bytes: int) -> None:
    """Refuse a body by what its head says. Raises LimitExceeded or MalformedRequest."""
    if headers.get("Content-Encoding", "identity").lower() != "identity":
        raise MalformedRequest(
            "bodies must not be compressed", code="unsupported_encoding", status=415
        )
    if declared is not None and declared > max_bytes:
        raise _too_large(max_bytes)


def _too_large(max_bytes: int) -> LimitExceeded:
    return LimitExceeded(
        f"the body may have {max_bytes} bytes at most", code="payload_too_large", status=413
    )
