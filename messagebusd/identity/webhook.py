"""Ask the host application who polls: one signed POST a poll (SPEC 5).

A 200 with valid JSON is an identity, a 4xx is the visitor's answer and passed on as it is, and
everything else is a failed lookup: the poll is told to come back later. Nobody becomes anonymous
because something failed.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import re
import secrets
import time
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

import aiohttp
import msgspec

from messagebusd.errors import (
    InvalidChannel,
    LookupRefused,
    LookupUnavailable,
    MalformedRequest,
)
from messagebusd.identity.base import (
    NOBODY,
    Caller,
    Identity,
    IdentityLookup,
    IdType,
    normalise_id,
)
from messagebusd.protocol.channels import ChannelPatterns, validate_channel, validate_site
from messagebusd.protocol.message import Id

MAX_ANSWER_BYTES = 64 * 1024
MAX_CONNECTIONS = 100

_HEADER_NAME = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+")
_CONTROL = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")
# Headers of the application's answer that belong to its own connection with us.
_HOP_HEADERS = frozenset(
    {
        "connection",
        "content-encoding",
        "content-length",
        "date",
        "keep-alive",
        "proxy-authenticate",
        "server",
        "te",
        "trailer",
        "transfer-encoding",
        "upgrade",
    }
)


class _Answer(msgspec.Struct):
    """What the application says; fields of later versions are ignored."""

    user_id: Id | None = None
    group_ids: list[Id] | None = None
    site_id: str | None = None
    is_admin: bool = False
    response_headers: dict[str, str] = {}
    allowed_channels: list[str] | None = None
    forced_channels: dict[str, int | None] | None = None


class WebhookLookup(IdentityLookup):
    """See the module's docstring. ``timeout`` is the seconds one lookup may take altogether.

    ``forward_headers`` are patterns of lower-case names; those of ``x-forwarded-*`` are passed on
    from trusted proxies only. With a ``secret``, ``whsec_`` and base64 or plain text, requests are
    signed as standardwebhooks.com says.
    """

    def __init__(
        self,
        url: str,
        *,
        timeout: float,
        forward_headers: Sequence[str],
        secret: str | None = None,
        id_type: IdType = "as_is",
    ) -> None:
        self._url = url
        self._timeout = timeout
        self._forwarded = ChannelPatterns([each.lower() for each in forward_headers])
        self._secret = None if secret is None else _secret_bytes(secret)
        self._id_type = id_type
        self._session: aiohttp.ClientSession | None = None

    async def open(self) -> None:
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=MAX_CONNECTIONS),
            cookie_jar=aiohttp.DummyCookieJar(),  # cookies belong to visitors, not to us
            auto_decompress=True,
        )

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()

    async def identify(self, caller: Caller) -> Identity:
        body = self._question(caller)
        try:
            async with asyncio.timeout(self._timeout):
                status, headers, answer = await self._ask(body)
        except TimeoutError:
            raise LookupUnavailable(f"no answer within {self._timeout:g} seconds") from None
        except aiohttp.ClientError as error:
            # Without its text, which may quote the answer, cookies and all.
            kind = type(error).__name__
            raise LookupUnavailable(f"the application was not reached: {kind}") from None
        if 400 <= status < 500:
            raise LookupRefused(status, answer, headers)
        if status != HTTPStatus.OK:
            raise LookupUnavailable(f"the application answered {status}")
        try:
            return self._identity(msgspec.json.decode(answer, type=_Answer))
        except RecursionError:
            raise LookupUnavailable("the application's answer is nested too deeply") from None
        except (ValueError, InvalidChannel, MalformedRequest) as error:
            raise LookupUnavailable(f"the application's answer is not usable: {error}") from None

    def _question(self, caller: Caller) -> bytes:
        headers: dict[str, str] = {}
        for name, value in caller.headers.items():
            lower = name.lower()
            if lower in self._forwarded and (
                caller.trusted or not lower.startswith("x-forwarded-")
            ):
                headers[lower] = f"{headers[lower]}, {value}" if lower in headers else value
        return msgspec.json.encode(
            {
                "client_id": caller.client_id,
                "method": caller.method,
                "path": caller.path,
                "query": caller.query,
                "host": caller.headers.get("Host", ""),
                "remote_addr": caller.remote_addr,
                "headers": headers,
            }
        )

    async def _ask(self, body: bytes) -> tuple[int, Mapping[str, str], bytes]:
        assert self._session is not None, "not opened"
        async with self._session.post(
            self._url,
            data=body,
            headers={"Content-Type": "application/json", **self._signature(body)},
            allow_redirects=False,
        ) as response:
            answer = bytearray()
            async for part in response.content.iter_any():
                answer += part
                if len(answer) > MAX_ANSWER_BYTES:
                    raise LookupUnavailable(f"the answer has more than {MAX_ANSWER_BYTES} bytes")
            headers = {
                name.lower(): value
                for name, value in response.headers.items()
                if name.lower() not in _HOP_HEADERS
            }
            return response.status, headers, bytes(answer)

    def _signature(self, body: bytes) -> dict[str, str]:
        if self._secret is None:
            return {}
        identifier, timestamp = f"msg_{secrets.token_hex(12)}", str(int(time.time()))
        signed = f"{identifier}.{timestamp}.".encode() + body
        digest = hmac.new(self._secret, signed, hashlib.sha256).digest()
        return {
            "webhook-id": identifier,
            "webhook-timestamp": timestamp,
            "webhook-signature": f"v1,{base64.b64encode(digest).decode()}",
        }

    def _identity(self, answer: _Answer) -> Identity:
        user_id = normalise_id(answer.user_id, self._id_type)
        if user_id in (NOBODY, str(NOBODY)):
            raise ValueError("user_id -1 is nobody")
        if answer.site_id is not None:
            validate_site(answer.site_id)
        for channel in answer.forced_channels or ():
            validate_channel(channel)
        for name, value in answer.response_headers.items():
            _check_header(name, value)
        groups: list[Any] = [normalise_id(each, self._id_type) for each in answer.group_ids or ()]
        allowed = answer.allowed_channels
        return Identity(
            user_id,
            frozenset(groups),
            answer.site_id,
            answer.is_admin,
            answer.response_headers,
            None if allowed is None else ChannelPatterns(allowed),
            answer.forced_channels,
        )


def _secret_bytes(secret: str) -> bytes:
    """The key that a secret stands for: base64 after ``whsec_``, else its own bytes."""
    if secret.startswith("whsec_"):
        return base64.b64decode(secret.removeprefix("whsec_"))
    return secret.encode()


def _check_header(name: str, value: str) -> None:
    """Refuse what would break the response apart."""
    if not _HEADER_NAME.fullmatch(name) or name.lower() in _HOP_HEADERS:
        raise ValueError(f"{name[:64]!r} cannot be a response header")
    if _CONTROL.search(value):
        raise ValueError(f"the response header {name} holds control characters")
