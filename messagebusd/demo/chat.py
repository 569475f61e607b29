"""The chat: a host application such as messagebusd is made for.

It knows nothing of the daemon but its HTTP API, and the daemon nothing of it but the address where
it asks who is polling. People log in by choosing a name; the page subscribes to two channels with
the ordinary browser client; what people write is posted here, checked, and published in the name of
whoever's cookie came along. Private messages share one channel, and their audience (``user_ids``)
decides who receives them.
"""

from __future__ import annotations

import logging
import time
import unicodedata
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path
from typing import Annotated, TypeVar

import msgspec
from aiohttp import ClientError, ClientSession, ClientTimeout, web
from yarl import URL

from messagebusd.demo import questions
from messagebusd.demo.people import (
    COOKIE,
    MAX_PEOPLE,
    ChatFull,
    NameTaken,
    People,
    Person,
)

ROOM = "/chat/room"
PRIVATE = "/chat/private"
LOOKUP = "/chat/lookup"

STATIC = Path(__file__).parent / "static"

_MAX_NAME = 32
_MAX_BODY = 16_384
_MAX_QUESTION = 128 * 1024  # it repeats headers of the poll, a few of up to 8 KiB each
_BUS_TIMEOUT = ClientTimeout(total=5)

_FILES = {
    "": ("index.html", "text/html"),
    "chat.css": ("chat.css", "text/css"),
    "chat.js": ("chat.js", "text/javascript"),
    "icon.svg": ("icon.svg", "image/svg+xml"),
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


class Written(msgspec.Struct, forbid_unknown_fields=True):
    """A message as the page posts it. Who wrote it says the cookie."""

    text: Annotated[str, msgspec.Meta(max_length=2000)]
    to: str | None = None


class Named(msgspec.Struct, forbid_unknown_fields=True):
    """A login, or another name for who is logged in."""

    name: str


_Form = TypeVar("_Form", Written, Named)


class Refused(Exception):
    """What was posted is not taken; the text is for the person who did."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(text)
        self.status = status


class Chat:
    """Routes of the chat, for the application that serves the bus as well.

    ``bus`` is where the daemon's API is, ``key`` a key for it that may do everything, ``secret``
    what the daemon signs its questions with.
    """

    def __init__(self, bus: URL, key: str, secret: str) -> None:
        self._bus = bus
        self._key = key
        self._secret = secret
        self._people = People(time.time)
        self._session: ClientSession | None = None

    def add_to(self, app: web.Application) -> None:
        """Add the page, its files and what it calls, and open what they need at start."""
        for path, (file, content_type) in _FILES.items():
            app.router.add_get(f"/{path}", _serve(STATIC / file, content_type))
        app.router.add_get("/chat/session", _answered(self._show_session))
        app.router.add_post("/chat/session", _answered(self._log_in))
        app.router.add_delete("/chat/session", _answered(self._log_out))
        app.router.add_post("/chat/messages", _answered(self._post_message))
        app.router.add_post(LOOKUP, self._who_is_it)
        app.cleanup_ctx.append(self._open_session)

    async def _open_session(self, _app: web.Application) -> AsyncIterator[None]:
        authorization = {"Authorization": f"Bearer {self._key}"}
        async with ClientSession(headers=authorization, timeout=_BUS_TIMEOUT) as session:
            self._session = session
            yield

    # -- the daemon asks -----------------------------------------------------------------------

    async def _who_is_it(self, request: web.Request) -> web.Response:
        """The webhook. A refusal reaches the page as the answer to its poll."""
        try:
            body = await _read(request, _MAX_QUESTION)
            question = questions.read(self._secret, request.headers, body, time.time())
        except (Refused, questions.NotSigned, msgspec.MsgspecError, UnicodeDecodeError):
            return web.Response(status=401, text="The question is not signed by the daemon.")
        person = self._people.known_by(question.headers.get("cookie", ""))
        if person is None:
            return web.Response(status=403, text="Log in first.")
        return web.json_response({"user_id": person.id})

    # -- people come and go --------------------------------------------------------------------

    async def _show_session(self, request: web.Request) -> web.Response:
        """Who the page's visitor is; null for nobody."""
        return _session(self._visitor(request))

    async def _log_in(self, request: web.Request) -> web.Response:
        """Take a name. Who is logged in already stays who they are, with another name."""
        _from_own_page(request)
        name = check_name(_decode(await _read_json(request), Named).name)
        person = self._visitor(request)
        try:
            if person is None:
                person = self._people.enter(name)
            else:
                self._people.rename(person, name)
        except NameTaken:
            raise Refused(409, f"Somebody here is called {name} already.") from None
        except ChatFull:
            raise Refused(503, f"There are {MAX_PEOPLE} people here, and no more fit in.") from None
        response = _session(person)
        # Not Secure: the demo speaks plain HTTP. Behind TLS it has to be.
        response.set_cookie(
            COOKIE,
            self._people.cookie(person),
            max_age=max(0, person.expires - int(time.time())),
            path="/",
            httponly=True,
            samesite="Lax",
        )
        return response

    async def _log_out(self, request: web.Request) -> web.Response:
        """Forget the cookie, then have the daemon end the polls that were let in by it."""
        _from_own_page(request)
        person = self._visitor(request)
        if person is not None:
            self._people.leave(person)
            await self._call_bus("lookups/invalidate", {"user_id": person.id})
        response = _session(None)
        response.del_cookie(COOKIE, path="/", httponly=True, samesite="Lax")
        return response

    def _visitor(self, request: web.Request) -> Person | None:
        return self._people.known_by(request.headers.get("Cookie", ""))

    # -- people write --------------------------------------------------------------------------

    async def _post_message(self, request: web.Request) -> web.Response:
        _from_own_page(request)
        body = await _read_json(request)
        sender = self._visitor(request)
        if sender is None:
            raise Refused(401, "You are not logged in any more.")
        written = check(body)
        recipient = None
        if written.to is not None:
            recipient = self._people.named(check_name(written.to))
            if recipient is None:
                raise Refused(422, f"Nobody here is called {written.to}.")
        if not await self._call_bus("publish", _publication(sender, recipient, written.text)):
            raise Refused(502, "The bus did not take the message.")
        return web.json_response({"ok": True}, status=201)

    async def _call_bus(self, call: str, body: object) -> bool:
        """Whether the daemon did what it was asked; what went wrong is logged."""
        assert self._session is not None, "opened before the first request"
        url = self._bus / "api/v1" / call
        try:
            async with self._session.post(url, json=body, allow_redirects=False) as response:
                if response.status == 200:
                    return True
                _log.warning("the bus answered %s with %d", call, response.status)
        except (ClientError, TimeoutError) as error:
            _log.warning("the bus could not be reached: %s %s", type(error).__name__, error)
        return False


def _publication(sender: Person, recipient: Person | None, text: str) -> dict[str, object]:
    message: dict[str, object] = {
        "from": _shown(sender),
        "text": text,
        "at": time.time_ns() // 1_000_000,
    }
    if recipient is None:
        return {"channel": ROOM, "data": message}
    message["to"] = _shown(recipient)
    # The sender too: a page shows its own messages when they arrive, as everybody's.
    audience = list(dict.fromkeys([recipient.id, sender.id]))
    return {"channel": PRIVATE, "data": message, "user_ids": audience}


def _shown(person: Person) -> dict[str, str]:
    # The id is no secret: it addresses, the cookie proves.
    return {"id": person.id, "name": person.name}


def _session(person: Person | None) -> web.Response:
    return web.json_response({"person": None if person is None else _shown(person)})


def check(body: bytes) -> Written:
    """Read and check a message as the page posts it."""
    written = _decode(body, Written)
    written.text = written.text.strip()
    if not written.text:
        raise Refused(422, "The message is empty.")
    return written


def check_name(text: str) -> str:
    """A name as it is kept: one spelling, whatever the keyboard."""
    name = unicodedata.normalize("NFC", text)
    # Letters, numbers and marks of any script. No spaces, so that "@name text" can be read.
    usual = all(unicodedata.category(c)[0] in "LNM" or c in "._-" for c in name)
    if not usual or not 1 <= len(name) <= _MAX_NAME:
        raise Refused(
            422, f"A name has 1 to {_MAX_NAME} letters, digits, dots, dashes and underscores."
        )
    return name


def _decode(body: bytes, form: type[_Form]) -> _Form:
    try:
        return msgspec.json.decode(body, type=form)
    except msgspec.ValidationError as error:
        raise Refused(422, f"This cannot be used: {error}.") from None
    except (msgspec.DecodeError, UnicodeDecodeError):
        raise Refused(400, "This is no JSON.") from None


def _from_own_page(request: web.Request) -> None:
    """Refuse what a page of another site made the browser send.

    SameSite alone does not do it: pages of other ports are of the same site. The scheme is not
    compared, for a proxy with TLS may stand in front.
    """
    origin = request.headers.get("Origin")
    if origin is not None and origin.partition("://")[2] != request.host:
        raise Refused(403, "This page does not belong to the chat.")


async def _read_json(request: web.Request) -> bytes:
    # Pages of other sites cannot send this content type without asking first, and are not allowed.
    if request.content_type != "application/json":
        raise Refused(415, "This must be sent as application/json.")
    return await _read(request, _MAX_BODY)


async def _read(request: web.Request, max_bytes: int) -> bytes:
    body = bytearray()
    async for part in request.content.iter_any():
        body += part
        if len(body) > max_bytes:
            raise Refused(413, "This is too long.")
    return bytes(body)


Handler = Callable[[web.Request], Awaitable[web.Response]]


def _answered(handler: Handler) -> Handler:
    """A handler whose refusals are answers, none of which is kept by anybody."""

    async def answer(request: web.Request) -> web.Response:
        try:
            response = await handler(request)
        except Refused as refused:
            response = web.json_response({"error": str(refused)}, status=refused.status)
        response.headers["Cache-Control"] = "no-store"
        return response

    return answer


def _serve(path: Path, content_type: str) -> Callable[[web.Request], Awaitable[web.FileResponse]]:
    async def serve(_request: web.Request) -> web.FileResponse:
        return web.FileResponse(path, headers={**_HEADERS, "Content-Type": content_type})

    return serve
