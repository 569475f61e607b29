"""The chat: a host application such as messagebusd is made for.

It knows nothing of the daemon but its HTTP API. The page subscribes to two channels with the
ordinary browser client; what people write is posted here, checked, and published. Private messages
share one channel, and their audience (``user_ids``) decides who receives them.
"""

from __future__ import annotations

import logging
import time
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, web
from yarl import URL

ROOM = "/chat/room"
PRIVATE = "/chat/private"

STATIC = Path(__file__).parent / "static"
VENDORED = STATIC / "vendor" / "message-bus.js"

_MAX_NAME = 32
_MAX_BODY = 16_384
_PUBLISH_TIMEOUT = ClientTimeout(total=5)

_FILES = {
    "": ("index.html", "text/html"),
    "chat.css": ("chat.css", "text/css"),
    "chat.js": ("chat.js", "text/javascript"),
    "ajax.js": ("ajax.js", "text/javascript"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
    "vendor/message-bus.js": ("vendor/message-bus.js", "text/javascript"),
}
_HEADERS = {
    "Cache-Control": "no-cache",
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self'; "
        "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}

_log = logging.getLogger(__name__)


class Written(msgspec.Struct, forbid_unknown_fields=True, rename={"sender": "from"}):
    """What the page posts."""

    sender: str
    text: Annotated[str, msgspec.Meta(max_length=2000)]
    to: str | None = None


class Refused(Exception):
    """The message is not taken; the text is for the person who wrote it."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Chat:
    """Routes of the chat, for the application that serves the bus as well.

    ``key`` is an API key of the daemon that may publish.
    """

    def __init__(self, key: str) -> None:
        self._key = key
        self._session: ClientSession | None = None

    def add_to(self, app: web.Application) -> None:
        """Add the page, its files and the form's target, and open what they need at start."""
        for path, (file, content_type) in _FILES.items():
            app.router.add_get(f"/{path}", _serve(STATIC / file, content_type))
        app.router.add_post("/chat/messages", self._post_message)
        app.cleanup_ctx.append(self._open_session)

    async def _open_session(self, _app: web.Application) -> AsyncIterator[None]:
        authorization = {"Authorization": f"Bearer {self._key}"}
        async with ClientSession(headers=authorization, timeout=_PUBLISH_TIMEOUT) as session:
            self._session = session
            yield

    async def _post_message(self, request: web.Request) -> web.Response:
        try:
            written = check(await _read(request))
            await self._publish(_bus_url(request), written)
        except Refused as refused:
            return web.json_response({"error": str(refused)}, status=refused.status)
        return web.json_response({"ok": True}, status=201)

    async def _publish(self, bus: URL, written: Written) -> None:
        message = {
            "from": written.sender,
            "text": written.text,
            "at": time.time_ns() // 1_000_000,
        }
        publication: dict[str, object] = {"channel": ROOM, "data": message}
        if written.to is not None:
            message["to"] = written.to
            # The sender too: a page shows its own messages when they arrive, as everybody's.
            audience = list(dict.fromkeys([written.to, written.sender]))
            publication = {"channel": PRIVATE, "data": message, "user_ids": audience}

        assert self._session is not None, "opened before the first request"
        try:
            async with self._session.post(
                bus / "api/v1/publish", json=publication, allow_redirects=False
            ) as response:
                if response.status == 200:
                    return
                _log.warning("the bus answered a publish with %d", response.status)
        except (ClientError, TimeoutError) as error:
            _log.warning("the bus could not be reached: %s %s", type(error).__name__, error)
        raise Refused(502, "The bus did not take the message.")


def check(body: bytes) -> Written:
    """Read and check what the page posted."""
    try:
        written = msgspec.json.decode(body, type=Written)
    except msgspec.ValidationError as error:
        raise Refused(422, f"The message cannot be used: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused(400, "The message is no JSON.") from None
    written.sender = _name(written.sender)
    if written.to is not None:
        written.to = _name(written.to)
    written.text = written.text.strip()
    if not written.text:
        raise Refused(422, "The message is empty.")
    return written


def _name(text: str) -> str:
    # One spelling of each name, whatever the keyboard: it is compared when messages are delivered.
    name = unicodedata.normalize("NFC", text)
    # Letters, numbers and marks of any script. No spaces, so that "@name text" can be read.
    usual = all(unicodedata.category(c)[0] in "LNM" or c in "._-" for c in name)
    if not usual or not 1 <= len(name) <= _MAX_NAME:
        raise Refused(
            422, f"A name has 1 to {_MAX_NAME} letters, digits, dots, dashes and underscores."
        )
    return name


async def _read(request: web.Request) -> bytes:
    # Pages of other sites cannot send this content type without asking first, and are not allowed.
    if request.content_type != "application/json":
        raise Refused(415, "The message must be sent as application/json.")
    body = bytearray()
    async for part in request.content.iter_any():
        body += part
        if len(body) > _MAX_BODY:
            raise Refused(413, "The message is too long.")
    return bytes(body)


def _bus_url(request: web.Request) -> URL:
    """Where the bus is: in this demo, at the address that the request itself came to.

    An application of its own has the daemon's address in its configuration.
    """
    assert request.transport is not None, "the request has just been read"
    host, port, *_ = request.transport.get_extra_info("sockname")
    return URL.build(scheme="http", host=host, port=port)


def _serve(path: Path, content_type: str) -> Callable[[web.Request], Awaitable[web.FileResponse]]:
    async def serve(_request: web.Request) -> web.FileResponse:
        return web.FileResponse(path, headers={**_HEADERS, "Content-Type": content_type})

    return serve
