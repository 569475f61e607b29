"""A caller, as lookups see it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from multidict import CIMultiDict


class Caller:
    def __init__(
        self,
        *headers: tuple[str, str],
        trusted: bool = False,
        remote_addr: str = "192.0.2.1",
        host: str = "forum.example",
        **parts: str,
    ) -> None:
        lines: Iterable[tuple[str, str]] = [("Host", host), *headers]
        self.headers: Any = CIMultiDict(lines)
        self.trusted = trusted
        self.remote_addr = remote_addr
        self.client_id = parts.get("client_id", "me")
        self.method = "POST"
        self.path = parts.get("path", "/message-bus/me/poll")
        self.query = parts.get("query", "")
