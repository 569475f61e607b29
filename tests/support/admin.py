"""The admin page's requests, without a browser: what the page would send."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

import aiohttp

HEADERS = {"X-Messagebusd-Admin": "active", "Sec-Fetch-Site": "same-origin"}


@dataclass(frozen=True, slots=True)
class Answer:
    """A whole answer; ``json`` is None where the body is none."""

    status: int
    headers: Mapping[str, str]
    text: str

    @property
    def json(self) -> Any:
        return json.loads(self.text) if self.text else None


class AdminPage:
    """Somebody with a browser. ``url`` is where the daemon's internal listener is.

    With ``anew`` each request has a connection of its own, so that any worker may answer it.
    """

    def __init__(self, url: str, *, anew: bool = False) -> None:
        self._url = url
        self._session = aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(force_close=anew),
            # It is for IP addresses as well.
            cookie_jar=aiohttp.CookieJar(unsafe=True),
            timeout=aiohttp.ClientTimeout(20),
        )

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def ask(
        self,
        method: str,
        path: str,
        body: Any = None,
        *,
        headers: Mapping[str, str] | None = None,
        query: Mapping[str, Any] | None = None,
    ) -> Answer:
        """Ask for a path below ``/admin/``. ``headers`` are added to those of the page."""
        async with self._session.request(
            method,
            f"{self._url}/admin/{path}",
            json=body,
            params=query,
            headers={**HEADERS, **(headers or {})},
            allow_redirects=False,
        ) as answer:
            return Answer(answer.status, answer.headers, await answer.text())

    async def get(self, path: str, **query: Any) -> Answer:
        return await self.ask("GET", path, query=query)

    async def log_in(self, key: str) -> Answer:
        return await self.ask("POST", "session", {"key": key})
