"""The way to the Redis server: its address, TLS, who we are, and where it is right now.

The address is looked up for every connection anew, by name or from Sentinels: after a failover it
is another machine. In a cluster the server itself says which node has our keys.
"""

from __future__ import annotations

import asyncio
import ssl
from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple
from urllib.parse import parse_qsl, unquote, urlsplit

from messagebusd.backends.redis.connection import Connection, Word
from messagebusd.backends.redis.errors import describe
from messagebusd.errors import ConfigurationError, StoreUnavailable
from messagebusd.settings.backend import RedisConnection

CLIENT_NAME = "messagebusd"
_UNUSABLE_URL = (
    "Redis: the URL must be redis://user:password@host:port/number, its only option is db, and "
    "special characters in a password are percent-encoded (or it is given as password)"
)
PORT = 6379
SENTINEL_PORT = 26379
MAX_PORT = 65535


class Address(NamedTuple):
    """Host and port."""

    host: str
    port: int

    @classmethod
    def parse(cls, text: str, port: int) -> Address:
        """Read ``host:port``, ``[v6]:port`` or ``host``. Raises ValueError."""
        parts = urlsplit(f"//{text}")
        if not parts.hostname or parts.path or parts.query or parts.username is not None:
            raise ValueError("must be host:port")
        return cls(parts.hostname, parts.port or port)


@dataclass(frozen=True, slots=True)
class Target:
    """What the settings say of a server. ``path`` is that of a Unix socket."""

    address: Address
    path: str | None = None
    database: int = 0
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    tls: ssl.SSLContext | None = None
    sentinels: tuple[Address, ...] = ()
    sentinel_master: str = ""
    sentinel_password: str | None = field(default=None, repr=False)

    @classmethod
    def from_settings(cls, settings: RedisConnection) -> Target:
        """Read the settings. Raises ConfigurationError, without quoting the URL."""
        parts = urlsplit(settings.url)
        options = dict(parse_qsl(parts.query, keep_blank_values=True))
        number = options.pop("db", None)
        is_unix = parts.scheme == "unix"
        if number is None:
            number = "" if is_unix else parts.path.strip("/")
        try:
            # Nothing of the URL is quoted: a password that is not escaped may be anywhere in it.
            if options or (number and not number.isdecimal()):
                raise ValueError
            address = Address(parts.hostname or "localhost", parts.port or PORT)
        except ValueError:
            raise ConfigurationError([_UNUSABLE_URL]) from None
        try:
            sentinels = tuple(Address.parse(each, SENTINEL_PORT) for each in settings.sentinels)
        except ValueError:
            raise ConfigurationError(["Redis: sentinels must be host:port"]) from None
        username = settings.username or (unquote(parts.username) if parts.username else None)
        password = unquote(parts.password) if parts.password else None
        if settings.password is not None:
            password = settings.password.get_secret_value()
        asked = settings.sentinel_password
        return cls(
            address,
            unquote(parts.path) if is_unix else None,
            int(number or 0),
            username,
            password,
            _tls(settings) if parts.scheme == "rediss" else None,
            sentinels,
            settings.sentinel_master,
            asked.get_secret_value() if asked is not None else None,
        )


def _tls(settings: RedisConnection) -> ssl.SSLContext:
    try:
        return ssl.create_default_context(cafile=settings.ca_file)
    except OSError as error:
        raise ConfigurationError(
            [f"Redis: ca_file {settings.ca_file} cannot be used: {error.strerror or error}"]
        ) from None


class Route:
    """Makes connections to wherever the server is; ``timeout`` bounds each step."""

    def __init__(self, target: Target, timeout: float) -> None:
        self.target = target
        self.timeout = timeout
        self._redirected: Address | None = None

    def redirect(self, node: str) -> bool:
        """Go to this node of a cluster from now on; whether that is a change."""
        host, _, port = node.rpartition(":")
        if not port.isdecimal() or int(port) > MAX_PORT:
            return False
        here = self._redirected or self.target.address
        address = Address(host if host not in ("", "?") else here.host, int(port))
        changed = address != self._redirected
        self._redirected = address
        return changed

    async def connect(self) -> Connection:
        """A connection that is logged in and at its database. Raises StoreUnavailable."""
        target = self.target
        try:
            address = self._redirected or target.address
            if target.sentinels and self._redirected is None:
                address = await self._ask_sentinels()
            return await self._reach(
                address, target.path, target.username, target.password, target.database
            )
        except StoreUnavailable:
            self._redirected = None
            raise

    async def _reach(
        self,
        address: Address,
        path: str | None = None,
        username: str | None = None,
        password: str | None = None,
        database: int = 0,
    ) -> Connection:
        loop = asyncio.get_running_loop()
        connection: Connection | None = None
        tls = self.target.tls
        try:
            async with asyncio.timeout(self.timeout):
                if path is not None:
                    _, connection = await loop.create_unix_connection(Connection, path)
                else:
                    _, connection = await loop.create_connection(
                        Connection,
                        *address,
                        ssl=tls,
                        server_hostname=address.host if tls is not None else None,
                    )
                await _log_in(connection, username, password, database)
                return connection
        except (OSError, UnicodeError, StoreUnavailable) as error:
            if connection is not None:
                await connection.close()
            if isinstance(error, StoreUnavailable):
                raise
            raise StoreUnavailable(describe(error)) from None
        except BaseException:
            if connection is not None:
                connection.fail("cancelled")
            raise

    async def _ask_sentinels(self) -> Address:
        """The master that most of the Sentinels that answer agree upon."""
        asked = {asyncio.ensure_future(self._ask(each)) for each in self.target.sentinels}
        votes: Counter[Address] = Counter()
        reason = "no Sentinel answers"
        waiting = asked
        try:
            while waiting:
                done, waiting = await asyncio.wait(waiting, return_when=asyncio.FIRST_COMPLETED)
                for each in done:
                    try:
                        votes[each.result()] += 1
                    except StoreUnavailable as error:
                        reason = f"Sentinel: {error}"
                if votes and 2 * max(votes.values()) > len(asked):
                    break
        finally:
            for each in waiting:
                each.cancel()
            await asyncio.gather(*asked, return_exceptions=True)
        if not votes:
            raise StoreUnavailable(reason)
        return votes.most_common(1)[0][0]

    async def _ask(self, sentinel: Address) -> Address:
        target = self.target
        connection = await self._reach(sentinel, password=target.sentinel_password)
        try:
            async with asyncio.timeout(self.timeout):
                (answer,) = await connection.ask(
                    ("SENTINEL", "GET-MASTER-ADDR-BY-NAME", target.sentinel_master)
                )
        except TimeoutError as error:
            raise StoreUnavailable(describe(error)) from None
        finally:
            await connection.close()
        if not answer:
            raise StoreUnavailable(f"it knows no master called {target.sentinel_master!r}")
        host, port = answer
        if not port.isdigit() or int(port) > MAX_PORT:
            raise StoreUnavailable("it names no usable address")
        return Address(host.decode("utf-8", "replace"), int(port))


async def _log_in(
    connection: Connection, username: str | None, password: str | None, database: int
) -> None:
    commands: list[tuple[Word, ...]] = []
    if password is not None:
        commands.append(("AUTH", username, password) if username else ("AUTH", password))
    if database:
        commands.append(("SELECT", database))
    await connection.ask(*commands, ("PING",))
    try:
        await connection.ask(("CLIENT", "SETNAME", CLIENT_NAME))
    except StoreUnavailable:
        # A courtesy to whoever looks at the server; the user may lack the permission.
        if not connection.is_open:
            raise
