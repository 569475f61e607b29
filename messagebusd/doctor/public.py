"""Poll by the public URL, as a browser would, and compare with what arrives at the daemon."""

from __future__ import annotations

import asyncio
import json
import secrets
import ssl
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar
from urllib.parse import urlsplit

import aiohttp

from messagebusd.doctor import public_findings as judge
from messagebusd.doctor.daemon import Daemon, DaemonUnreachable
from messagebusd.doctor.public_findings import FORGED_ADDRESS, FORGED_USER, Observed
from messagebusd.doctor.report import Report
from messagebusd.doctor.streams import Poll
from messagebusd.protocol.rules import ChannelRules
from messagebusd.settings import Settings

T = TypeVar("T")

CHANNEL = "/__messagebusd_doctor/public"
# A frame that takes longer was held back; message-bus.js waits for three seconds.
HELD_BACK_SECONDS = 4.0
# Messages that are published, one after the other has come.
MESSAGES = 3
# How much later than the interval a poll may end.
END_SECONDS = 10.0
ORIGIN = "https://messagebusd-doctor.invalid"
# What the internal listener serves, and what of it cannot be anybody else's.
INTERNAL = {
    "metrics": b"messagebusd_",
    "api/v1/openapi.json": b'"title":"messagebusd"',
    "admin/": b"<title>messagebusd</title>",
}


async def examine(
    settings: Settings,
    report: Report,
    url: str,
    key: str | None,
    headers: Mapping[str, str] | None = None,
) -> None:
    """Look at it from all sides. ``headers`` are what somebody sends who is logged in. Takes as
    long as a poll waits."""
    session = aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(ssl=ssl.create_default_context(), force_close=True),
        cookie_jar=aiohttp.DummyCookieJar(),
        timeout=aiohttp.ClientTimeout(None, sock_connect=HELD_BACK_SECONDS),
        auto_decompress=False,
        skip_auto_headers=("Accept-Encoding",),
    )
    async with session, Daemon(settings, key) as daemon:
        observed = await _Examination(settings, url, session, daemon, dict(headers or {})).run()
    report.extend(judge.all_findings(observed, settings))


class _Examination:
    def __init__(
        self,
        settings: Settings,
        url: str,
        session: aiohttp.ClientSession,
        daemon: Daemon,
        headers: dict[str, str],
    ) -> None:
        self._settings = settings
        self._root = url.rstrip("/")
        self._polls = f"{self._root}{settings.server.base_route}message-bus/"
        self._session = session
        # None once it could not be asked.
        self._daemon: Daemon | None = daemon
        self._headers = {"Content-Type": "application/json", **headers}
        parts = urlsplit(url)
        self._host = parts.hostname or ""
        self._port = parts.port or (443 if parts.scheme == "https" else 80)
        self._seen = Observed(parts.scheme, self._host)

    async def run(self) -> Observed:
        seen = self._seen
        await self._poll_at_once()
        if seen.immediate.error:
            return seen  # nobody is there
        idle = self._start(await self._client_id(), {f"{CHANNEL}/idle": None})
        try:
            await asyncio.gather(
                self._stream(), self._ask_preflight(), self._look_inside(), self._negotiate()
            )
            await idle.until_end(self._settings.poll.long_polling_interval + END_SECONDS)
        finally:
            seen.idle = idle.seen
            await idle.close()
        return seen

    async def _ask(self, what: Callable[[Daemon], Awaitable[T]]) -> T | None:
        """Ask the daemon; None if that is not possible, and from then on nothing is asked."""
        if self._daemon is None:
            return None
        try:
            return await what(self._daemon)
        except DaemonUnreachable as error:
            self._seen.unasked = str(error)
            self._daemon = None
            return None

    async def _client_id(self) -> str:
        return await self._ask(Daemon.probe) or f"doctor-{secrets.token_hex(12)}"

    def _start(
        self, client_id: str, positions: Mapping[str, int | None], query: str = "", **more: str
    ) -> Poll:
        headers = {"Accept-Encoding": "gzip, deflate, br, zstd", **self._headers, **more}
        url = f"{self._polls}{client_id}/poll{query}"
        return Poll(self._session, "POST", url, headers, json.dumps(positions).encode())

    async def _poll_at_once(self) -> None:
        """With what a visitor could forge, and what has to pass."""
        forged = {
            "X-Forwarded-For": FORGED_ADDRESS,
            "X-Forwarded-Proto": "doctor",
            "Cookie": self._headers.get("Cookie", "messagebusd_doctor=1"),
            "Authorization": self._headers.get("Authorization", "Doctor none"),
        }
        client_id = await self._client_id()
        poll = self._start(client_id, {}, "?dlp=t", **forged)
        await poll.until_end(2 * HELD_BACK_SECONDS)
        self._seen.immediate = poll.seen
        await poll.close()
        self._seen.was_announced = self._daemon is not None
        self._seen.arrival = await self._ask(lambda daemon: daemon.arrival(client_id))

    async def _stream(self) -> None:
        seen, client_id = self._seen, await self._client_id()
        forged = {}
        if self._settings.lookup.mode == "headers":
            forged[self._settings.lookup.headers.user] = FORGED_USER
        rules = ChannelRules([each.rule() for each in self._settings.channels])
        seen.may_listen = rules.may_subscribe(CHANNEL, None, None)
        poll = self._start(client_id, {CHANNEL: -1}, **forged)
        seen.stream = poll.seen
        try:
            if await poll.until_frames(1, HELD_BACK_SECONDS):
                seen.client = await self._ask(lambda daemon: daemon.client(client_id))
                if seen.may_listen and poll.seen.is_stream:
                    await self._publish(poll, client_id)
        finally:
            await poll.close()

    async def _publish(self, poll: Poll, client_id: str) -> None:
        site_id = None if self._seen.client is None else self._seen.client["site_id"]
        publication = {
            "channel": CHANNEL,
            "data": "from messagebusd doctor",
            "client_ids": [client_id],
            "site_id": site_id,
            "max_backlog_age": 60,
        }
        for number in range(MESSAGES):
            since = time.monotonic()
            await self._ask(lambda daemon: daemon.publish(publication))
            if self._daemon is None:
                return
            came = await poll.until_frames(number + 2, HELD_BACK_SECONDS)
            self._seen.delays.append(time.monotonic() - since if came else None)
            if not came:
                return

    async def _ask_preflight(self) -> None:
        origins = [each for each in self._settings.cors.allow_origins if each != "*"]
        headers = {
            "Origin": origins[0] if origins else ORIGIN,
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "content-type",
        }
        url = f"{self._polls}{await self._client_id()}/poll"
        poll = Poll(self._session, "OPTIONS", url, headers, None)
        await poll.until_end(HELD_BACK_SECONDS)
        self._seen.preflight = poll.seen
        await poll.close()

    async def _look_inside(self) -> None:
        for path, mark in INTERNAL.items():
            poll = Poll(self._session, "GET", f"{self._root}/{path}", {}, None)
            await poll.until_end(HELD_BACK_SECONDS)
            if poll.seen.status == 200 and mark in poll.seen.body:
                self._seen.inside.append(f"/{path}")
            await poll.close()

    async def _negotiate(self) -> None:
        """What browsers may speak: they say, and the server chooses (RFC 7301)."""
        if self._seen.scheme != "https":
            return
        context = ssl.create_default_context()
        context.check_hostname = False  # others look at that
        context.verify_mode = ssl.CERT_NONE
        context.set_alpn_protocols(["h2", "http/1.1"])
        try:
            async with asyncio.timeout(HELD_BACK_SECONDS):
                _, writer = await asyncio.open_connection(
                    self._host, self._port, ssl=context, server_hostname=self._host
                )
        except (OSError, TimeoutError):
            return
        tls = writer.get_extra_info("ssl_object")
        self._seen.protocol = tls.selected_alpn_protocol() or "http/1.1"
        writer.transport.abort()
