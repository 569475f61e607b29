"""Talk to a daemon's HTTP API from the command line: address, key, requests, errors in words."""

from __future__ import annotations

import asyncio
import os
import re
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from functools import wraps
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import urlsplit

import aiohttp
import click
import msgspec

DEFAULT_URL = "http://127.0.0.1:8090"
PAGE_SIZE = 1000
"""Items that the API gives at a time, at most."""

_ELSEWHERE = (
    "If its API is elsewhere (server.internal_listen), say where with --url or MESSAGEBUSD_URL."
)
_MAX_DETAIL = 500
_ONE_ANSWER = aiohttp.ClientTimeout(total=30)

Query = Mapping[str, str | int | list[str] | None]
T = TypeVar("T")


class Page(msgspec.Struct):
    """What lists have in common: ``next`` is where the next page begins."""

    next: str | int | None


PageT = TypeVar("PageT", bound=Page)


class ApiError(click.ClickException):
    """The daemon refused, or could not be asked: shown as ``error: …``, exit code 1.

    ``hint`` says what to do about it. ``status`` is that of the answer, 0 when there was none;
    ``retry_after`` is in seconds.
    """

    def __init__(
        self, message: str, *, hint: str = "", status: int = 0, retry_after: float = 0.0
    ) -> None:
        super().__init__(message)
        self.hint = hint
        self.status = status
        self.retry_after = retry_after

    @property
    def is_temporary(self) -> bool:
        """Whether the same request may succeed later."""
        return self.status in (0, 429) or self.status >= 500

    def show(self, file: IO[Any] | None = None) -> None:
        text = f"error: {self.message}\n{self.hint}".rstrip()
        click.echo(text, file=file, err=file is None)


@dataclass(frozen=True, slots=True)
class Api:
    """Where a daemon's API is, and the key for it."""

    url: str
    key: str | None = field(repr=False)

    @asynccontextmanager
    async def request(
        self,
        method: str,
        path: str,
        *,
        query: Query | None = None,
        body: object = None,
        timeouts: aiohttp.ClientTimeout = _ONE_ANSWER,
    ) -> AsyncIterator[aiohttp.ClientResponse]:
        """Ask, and give the answer when its head is there.

        Query members that are ``None`` are left out. Raises ``ApiError`` for every answer but 200,
        and when the connection fails, also while the body is read.
        """
        params = {name: value for name, value in (query or {}).items() if value is not None}
        headers = {"Authorization": f"Bearer {self.key}"} if self.key else {}
        data = None
        if body is not None:
            headers["Content-Type"] = "application/json"
            data = msgspec.json.encode(body)
        try:
            async with (
                aiohttp.ClientSession(headers=headers, timeout=timeouts) as session,
                session.request(
                    method, self.url + path, params=params, data=data, allow_redirects=False
                ) as response,
            ):
                if response.status != 200:
                    raise await self._refusal(response)
                yield response
        except aiohttp.ClientConnectorError as error:
            raise ApiError(
                f"cannot connect to {self.url}: {_reason(error)}",
                hint=f"Is messagebusd running there? {_ELSEWHERE}",
            ) from None
        except TimeoutError:
            raise ApiError(f"{self.url} did not answer in time") from None
        except aiohttp.ClientError as error:
            reason = str(error) or type(error).__name__
            raise ApiError(f"no proper answer from {self.url}: {reason}") from None

    def ask(
        self,
        method: str,
        path: str,
        answer: type[T],
        *,
        query: Query | None = None,
        body: object = None,
    ) -> T:
        """Ask for one JSON document of the type ``answer`` and wait for it."""

        async def content() -> bytes:
            async with self.request(method, path, query=query, body=body) as response:
                return await response.read()

        try:
            return msgspec.json.decode(asyncio.run(content()), type=answer)
        except msgspec.DecodeError:
            raise self.not_understood() from None

    def pages(self, path: str, page: type[PageT]) -> Iterator[PageT]:
        """Yield all pages of a list."""
        after = None
        while True:
            answer = self.ask("GET", path, page, query={"after": after, "limit": PAGE_SIZE})
            yield answer
            if answer.next in (None, after):
                return
            after = answer.next

    def not_understood(self) -> ApiError:
        """The error for an answer that does not have the form it should have."""
        return ApiError(f"the answer of {self.url} is not understood; is it messagebusd's API?")

    async def _refusal(self, response: aiohttp.ClientResponse) -> ApiError:
        try:
            problem = msgspec.json.decode(await response.read())
            message = printable(f"{problem['detail']} ({problem['code']})")
        except (msgspec.DecodeError, KeyError, TypeError):
            # Not from messagebusd itself: a proxy, or another server.
            message = printable(f"{self.url} answered {response.status} {response.reason}")
        hint = ""
        if response.status == 401 and not self.key:
            hint = "No key was sent: set MESSAGEBUSD_KEY, or use --key-file."
        elif response.status == 404:
            hint = f"Is {self.url} the public listener? {_ELSEWHERE}"
        wait = response.headers.get("Retry-After", "")
        retry_after = float(wait) if re.fullmatch(r"[0-9]{1,6}", wait) else 0.0
        return ApiError(message, hint=hint, status=response.status, retry_after=retry_after)


def _reason(error: aiohttp.ClientConnectorError) -> str:
    if isinstance(error, aiohttp.ClientConnectorDNSError):
        return "the host name is not known"
    if isinstance(error, aiohttp.ClientConnectorCertificateError):
        return f"its certificate is not valid: {error.certificate_error}"
    if error.errno:
        return os.strerror(error.errno)
    return str(error.os_error)


def printable(text: str) -> str:
    """What may be shown on a terminal: one line, no control characters, not too long."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)[
        :_MAX_DETAIL
    ]


# -- options


def _url(context: click.Context, parameter: click.Parameter, value: str) -> str:
    try:
        parts = urlsplit(value)
        usable = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:
        usable = False
    if not usable or parts.query or parts.fragment:
        raise click.BadParameter("must be http://host:port or https://host:port")
    if parts.username is not None or parts.password is not None:
        raise click.BadParameter("must not hold a password; the key belongs into MESSAGEBUSD_KEY")
    return value.rstrip("/")


def valid_url(context: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """A callback for options that may be left out: an address without path, query or password."""
    return None if value is None else _url(context, parameter, value)


def read_key(file: Path | None) -> str | None:
    """The key in this file, or else in the environment. Raises ApiError."""
    if file is None:
        source, key = "MESSAGEBUSD_KEY", os.environ.get("MESSAGEBUSD_KEY", "").strip()
    else:
        try:
            source, key = str(file), file.read_bytes().decode().strip()
        except (OSError, UnicodeDecodeError) as error:
            reason = error.strerror if isinstance(error, OSError) else "it is not text"
            raise ApiError(f"{file} cannot be read: {reason}") from None
        if not key:
            raise ApiError(f"{file} is empty")
    if not re.fullmatch(r"[\x21-\x7e]*", key):
        raise ApiError(f"{source} does not hold a key: a key is printable ASCII without spaces")
    return key or None


key_file_option = click.option(
    "--key-file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="File with the API key. Without it, the key is taken from MESSAGEBUSD_KEY.",
)


def api_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--url`` and ``--key-file``; it gets the ``Api`` as its argument ``api``.

    There is no option for the key itself: everybody on the machine could read it.
    """

    @click.option(
        "--url",
        envvar="MESSAGEBUSD_URL",
        default=DEFAULT_URL,
        show_default=True,
        show_envvar=True,
        callback=_url,
        metavar="URL",
        help="Where the daemon's API is.",
    )
    @key_file_option
    @wraps(command)
    def run(url: str, key_file: Path | None, **arguments: Any) -> None:
        command(Api(url, read_key(key_file)), **arguments)

    return run


def node_options(command: Callable[..., None]) -> Callable[..., None]:
    """The same for several daemons: the command gets a list of them as its argument ``nodes``."""

    def urls(
        context: click.Context, parameter: click.Parameter, values: tuple[str, ...]
    ) -> list[str]:
        return [_url(context, parameter, each) for each in values]

    @click.option(
        "--url",
        "urls",
        multiple=True,
        envvar="MESSAGEBUSD_URL",
        default=[DEFAULT_URL],
        show_default=True,
        show_envvar=True,
        callback=urls,
        metavar="URL",
        help="Where a daemon's API is; once for each node.",
    )
    @key_file_option
    @wraps(command)
    def run(urls: list[str], key_file: Path | None, **arguments: Any) -> None:
        key = read_key(key_file)
        command([Api(url, key) for url in urls], **arguments)

    return run


def site_option(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--site``."""
    return click.option("--site", metavar="SITE", help="Site of the channels.")(command)
