"""Take mirrored polls, and ask both servers.

A mirrored request is answered before anything is asked: nginx waits for nothing here. What is too
much is skipped, and what fails is counted. Requests are held in memory only, for as long as they
are compared; cookies and bodies go to the two servers and nowhere else.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence

import aiohttp
from aiohttp import web
from multidict import CIMultiDict
from yarl import URL

from messagebusd.protocol.ratelimit import Bucket
from messagebusd.shadow.compare import Difference, Reply, compare
from messagebusd.shadow.tally import Tally

MAX_BODY_BYTES = 256 * 1024
MAX_REPLY_BYTES = 16 * 1024 * 1024
# Polls that are compared at the same time.
MAX_UNDER_WAY = 8
# How long an answer may take, and when differing ones are asked for again.
ANSWER_SECONDS = 10.0
AGAIN_SECONDS = (0.5, 2.0)

# What belongs to a connection, and what proxies of theirs have to say anew.
_DROPPED = frozenset(
    {"connection", "content-length", "expect", "keep-alive", "proxy-connection", "te", "trailer"}
    | {"transfer-encoding", "upgrade", "accept-encoding"}
)
# What would be counted twice: a visitor's presence and page views (REFERENCE 3.4).
_WITH_EFFECTS = ("discourse-",)


class Unanswered(Exception):
    """A server did not answer."""


class Mirror:
    """Compares at most ``rate`` polls a second. ``found`` is told each difference of a new kind."""

    def __init__(
        self,
        original: str,
        ours: str,
        base_route: str,
        *,
        rate: int,
        found: Callable[[Difference], object],
        again: Sequence[float] = AGAIN_SECONDS,
    ) -> None:
        self.tally = Tally()
        # Set whenever a poll has been compared.
        self.progress = asyncio.Event()
        self._prefix = f"{base_route}message-bus/"
        self._original = original.rstrip("/")
        self._ours = ours.rstrip("/")
        self._bucket = Bucket(rate, 1.0, time.monotonic)
        self._found = found
        self._again = again
        self._tasks: set[asyncio.Task[None]] = set()
        self._session: aiohttp.ClientSession | None = None

    def application(self) -> web.Application:
        """What to serve."""
        app = web.Application(client_max_size=MAX_BODY_BYTES)
        app.router.add_route("*", "/{path:.*}", self._take)
        app.cleanup_ctx.append(self._life)
        return app

    async def _life(self, _app: web.Application) -> AsyncIterator[None]:
        self._session = aiohttp.ClientSession(
            cookie_jar=aiohttp.DummyCookieJar(),
            timeout=aiohttp.ClientTimeout(ANSWER_SECONDS),
        )
        async with self._session:
            yield
            for each in self._tasks:
                each.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _take(self, request: web.Request) -> web.Response:
        """Answer, and compare afterwards."""
        tally = self.tally
        tally.seen += 1
        path = request.raw_path.partition("?")[0]
        if request.method != "POST" or not path.startswith(self._prefix):
            tally.ignored += 1
        elif len(self._tasks) >= MAX_UNDER_WAY or self._bucket.take():
            tally.skipped += 1
        else:
            headers = _passed_on(request)
            body = await request.read()
            task = asyncio.create_task(self._compare(path, headers, body))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return web.Response(status=204)

    async def _compare(self, path: str, headers: CIMultiDict[str], body: bytes) -> None:
        tally = self.tally
        try:
            differences = await self._ask_both(path, headers, body)
            settled = bool(differences)
            for seconds in self._again:
                if not differences:
                    break
                # What is published between two questions is in one of the answers only.
                await asyncio.sleep(seconds)
                differences = await self._ask_both(path, headers, body)
        except Unanswered:
            tally.unanswered += 1
        else:
            tally.compared += 1
            if differences:
                for each in tally.differs(differences):
                    self._found(each)
            elif settled:
                tally.settled += 1
            else:
                tally.alike += 1
        self.progress.set()

    async def _ask_both(
        self, path: str, headers: CIMultiDict[str], body: bytes
    ) -> list[Difference]:
        """How they differ. Raises Unanswered if the original does not answer; that we do not is a
        difference."""
        original, ours = await asyncio.gather(
            self._ask(self._original, path, headers, body),
            self._ask(self._ours, path, headers, body),
            return_exceptions=True,
        )
        if isinstance(original, BaseException):
            raise original
        if isinstance(ours, Unanswered):
            return [Difference("unanswered", f"we do not answer: {ours}")]
        if isinstance(ours, BaseException):
            raise ours
        return compare(original, ours)

    async def _ask(self, server: str, path: str, headers: CIMultiDict[str], body: bytes) -> Reply:
        assert self._session is not None
        try:
            async with self._session.post(
                URL(f"{server}{path}?dlp=t", encoded=True),
                data=body,
                headers=headers,
                allow_redirects=False,
            ) as response:
                content = bytearray()
                async for part in response.content.iter_any():
                    content += part
                    if len(content) > MAX_REPLY_BYTES:
                        raise Unanswered("the answer is too large")
                content_type = response.headers.get("Content-Type", "")
                return Reply(response.status, content_type, bytes(content))
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise Unanswered(type(error).__name__) from None


def _passed_on(request: web.Request) -> CIMultiDict[str]:
    """The request's headers, as far as they are for both servers."""
    kept = CIMultiDict(
        (name, value)
        for name, value in request.headers.items()
        if name.lower() not in _DROPPED and not name.lower().startswith(_WITH_EFFECTS)
    )
    kept["Accept-Encoding"] = "identity"
    return kept
