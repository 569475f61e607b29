"""What the application is asked about a poll, and which polls ask the same (SPEC 5)."""

from __future__ import annotations

import hashlib
import secrets
from collections.abc import Sequence

import msgspec

from messagebusd.errors import LimitExceeded
from messagebusd.identity.base import Caller, as_text
from messagebusd.protocol.channels import ChannelPatterns
from messagebusd.settings.lookup import CREDENTIALS

# More than browsers and proxies send; applications refuse heads of less.
MAX_HEADER_BYTES = 64 * 1024

# What proxies write about the client: anybody else would write it about himself.
_PROXY_HEADERS = ChannelPatterns(["x-forwarded-*", "forwarded", "x-real-ip"])


class Question:
    """One poll's question.

    Polls with the same ``key`` ask the same. ``bypasses`` says that this one has to reach the
    application. A refusal counts for all polls with the same ``refusal_key``: without anything to
    know a visitor by, it may have been about his address or his browser.
    """

    __slots__ = ("_caller", "_headers", "_host", "bypasses", "key", "refusal_key")

    def __init__(
        self,
        caller: Caller,
        host: str,
        headers: dict[str, str],
        bypasses: bool,
        key: bytes,
        refusal_key: bytes,
    ) -> None:
        self._caller = caller
        self._host = host
        self._headers = headers
        self.bypasses = bypasses
        self.key = key
        self.refusal_key = refusal_key

    def body(self) -> bytes:
        """The question as JSON."""
        caller = self._caller
        return msgspec.json.encode(
            {
                "client_id": as_text(caller.client_id),
                "method": caller.method,
                "path": as_text(caller.path),
                "query": as_text(caller.query),
                "host": self._host,
                "remote_addr": as_text(caller.remote_addr),
                "headers": self._headers,
            }
        )


class Questions:
    """Makes them. ``forwarded`` and ``ignored`` are patterns of header names in lower case.

    Headers that are ``forwarded`` tell visitors apart unless they are ``ignored``. Those that
    ``bypass`` the cache are passed on too, and by themselves tell nobody apart: they are about the
    one poll. Credentials always tell, or else what the application says of whoever sent them would
    be kept for everybody who sends none.
    """

    def __init__(
        self, forwarded: Sequence[str], ignored: Sequence[str], bypass: Sequence[str]
    ) -> None:
        self._bypass = frozenset(each.lower() for each in bypass)
        self._forwarded = ChannelPatterns([*forwarded, *self._bypass])
        self._ignored = ChannelPatterns(ignored)
        self._telling = ChannelPatterns([*forwarded, *CREDENTIALS])
        # Keys are all that is kept of cookies and tokens. Who reads this process' memory later
        # cannot even try which ones they were made of without this.
        self._salt = secrets.token_bytes(32)

    def of(self, caller: Caller) -> Question:
        """The question about this caller. Raises LimitExceeded."""
        # In one spelling for the key and the application: it may be one that compares exactly.
        host = as_text(caller.headers.get("Host", "")).lower()
        headers = self._headers(caller)
        told_by = sorted(
            (name, value)
            for name, value in headers.items()
            if name not in self._ignored and name in self._telling
        )
        key = self._digest([host, told_by])
        refusal_key = key
        if not told_by:
            about = sorted(each for each in headers.items() if each[0] not in self._bypass)
            refusal_key = self._digest([host, caller.remote_addr, about])
        bypasses = not self._bypass.isdisjoint(headers)
        return Question(caller, host, headers, bypasses, key, refusal_key)

    def _headers(self, caller: Caller) -> dict[str, str]:
        headers: dict[str, str] = {}
        size = 0
        for name, value in caller.headers.items():
            lower = name.lower()
            if lower not in self._forwarded or (lower in _PROXY_HEADERS and not caller.trusted):
                continue
            size += len(name) + len(value)
            if size > MAX_HEADER_BYTES:
                raise LimitExceeded(
                    f"the headers take more than {MAX_HEADER_BYTES} bytes",
                    code="headers_too_large",
                    status=431,
                )
            text = as_text(value)
            if lower in headers:
                # HTTP/2 lets browsers send one cookie a line (RFC 9113, 8.2.3).
                text = f"{headers[lower]}{'; ' if lower == 'cookie' else ', '}{text}"
            headers[lower] = text
        return headers

    def _digest(self, value: object) -> bytes:
        return hashlib.blake2b(msgspec.json.encode(value), key=self._salt, digest_size=16).digest()
