"""Where the keys of tokens come from: the settings, a file, or a URL (SPEC 5).

Keys can be changed while the daemon runs. A file is read again when it changes; a URL is asked
again before its keys are too old, and when a token names a key that is not known. What cannot be
used leaves the last keys that could in force. No token is judged by keys that are missing: until
there are any, and while it cannot be known whether a key exists, the answer is to come back later.
"""

from __future__ import annotations

import asyncio
import logging
import os
import random
import time
from abc import ABC, abstractmethod
from collections.abc import Callable
from contextlib import suppress
from http import HTTPStatus
from pathlib import Path

import aiohttp

from messagebusd.errors import ConfigurationError, LookupUnavailable
from messagebusd.identity.jwt_keys import (
    Key,
    KeySet,
    UnusableKey,
    one_key,
    public_key,
    read_key_set,
    secret_key,
)
from messagebusd.settings import LookupJwt

MAX_SET_BYTES = 256 * 1024
# How often a file may be looked at.
FILE_CHECK_SECONDS = 1.0
# How long a URL may take altogether, and how long a poll waits for it, which is below what the
# first frame may take (SPEC 2.4).
FETCH_SECONDS = 5.0
WAIT_SECONDS = 1.2
# The least time between two fetches: tokens are made up at will, and each could name a new key.
COOLDOWN_SECONDS = 10.0
# Workers and nodes do not all fetch in the same second.
JITTER = 0.1

_log = logging.getLogger(__name__)


class Keys(ABC):
    """The keys that tokens are verified with.

    ``is_immediate`` says that finding one waits for nothing and nobody.
    """

    is_immediate = True

    async def open(self) -> None:
        """Get ready."""
        return

    async def close(self) -> None:
        """Release everything."""
        return

    @abstractmethod
    async def find(self, key_id: str | None) -> Key | None:
        """The key that a token names, None if there is no such key.

        Raises LookupUnavailable where that cannot be known at the moment.
        """


class FixedKeys(Keys):
    """Keys that do not change."""

    def __init__(self, keys: KeySet) -> None:
        self._keys = keys

    async def find(self, key_id: str | None) -> Key | None:
        return self._keys.find(key_id)


class FileKeys(Keys):
    """Keys in a file. Raises UnusableKey or OSError if it cannot be used at the beginning."""

    def __init__(
        self,
        path: Path,
        read: Callable[[bytes], KeySet],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._path = path
        self._read = read
        self._clock = clock
        self._stamp = self._look()
        self._keys = self._load()
        self._look_again_at = clock() + FILE_CHECK_SECONDS

    async def find(self, key_id: str | None) -> Key | None:
        if (now := self._clock()) >= self._look_again_at:
            self._look_again_at = now + FILE_CHECK_SECONDS
            self._refresh()
        return self._keys.find(key_id)

    def _refresh(self) -> None:
        """Read the file again if it is another one."""
        stamp: tuple[int, ...] = ()
        try:
            stamp = self._look()
            if stamp != self._stamp:
                self._keys = self._load()
                _log.info("the token keys were read again", extra={"path": str(self._path)})
        except (OSError, UnusableKey) as error:
            if stamp != self._stamp:  # say it once
                reason = {"path": str(self._path), "reason": reason_of(error)}
                _log.error("the token keys cannot be read again", extra=reason)
        self._stamp = stamp

    def _look(self) -> tuple[int, ...]:
        found = os.stat(self._path)
        return found.st_mtime_ns, found.st_size, found.st_ino

    def _load(self) -> KeySet:
        with self._path.open("rb") as file:
            content = file.read(MAX_SET_BYTES + 1)
        if len(content) > MAX_SET_BYTES:
            raise UnusableKey(f"it has more than {MAX_SET_BYTES} bytes")
        return self._read(content)


class RemoteKeys(Keys):
    """Keys at a URL, fetched by one task: whoever needs a key that is not there waits for it.

    ``max_age`` is in seconds, as are ``cooldown``, the least time between two fetches, and
    ``wait``, what a poll waits at most. A known key never waits.
    """

    is_immediate = False

    def __init__(
        self,
        url: str,
        max_age: float,
        *,
        cooldown: float = COOLDOWN_SECONDS,
        timeout: float = FETCH_SECONDS,
        wait: float = WAIT_SECONDS,
    ) -> None:
        self._url = url
        self._max_age = max_age
        self._cooldown = cooldown
        self._timeout = timeout
        self._wait = wait
        self._keys = KeySet()
        # Why the last fetch was none; None after one that was.
        self._failure: str | None = "they were not fetched yet"
        self._is_cooling = False
        self._wanted = asyncio.Event()
        self._fetched = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def open(self) -> None:
        self._task = asyncio.create_task(self._fetch_forever())
        # The first polls find keys; but a URL that hangs holds nobody up, the daemon included.
        with suppress(TimeoutError):
            await self._next_fetch()

    async def close(self) -> None:
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task

    async def find(self, key_id: str | None) -> Key | None:
        key = self._keys.find(key_id)
        if key is not None:
            return key
        if key_id is not None or self._failure is not None:
            self._wanted.set()
            if not self._is_cooling:
                try:
                    await self._next_fetch()
                except TimeoutError:
                    raise LookupUnavailable("the token keys do not arrive in time") from None
                key = self._keys.find(key_id)
        if key is None and self._failure is not None:
            raise LookupUnavailable(f"the token keys are not known: {self._failure}")
        return key

    async def _next_fetch(self) -> None:
        """Wait for the end of the fetch that runs or comes. Raises TimeoutError."""
        async with asyncio.timeout(self._wait):
            await self._fetched.wait()

    async def _fetch_forever(self) -> None:
        async with aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=self._timeout),
            cookie_jar=aiohttp.DummyCookieJar(),
        ) as session:
            while True:
                self._wanted.clear()
                self._fetched.clear()
                await self._fetch(session)
                self._is_cooling = True
                self._fetched.set()
                await asyncio.sleep(self._cooldown)
                self._is_cooling = False
                self._fetched.clear()
                if self._failure is None:
                    spread = 1 - JITTER * random.random()
                    with suppress(TimeoutError):
                        async with asyncio.timeout(self._max_age * spread - self._cooldown):
                            await self._wanted.wait()

    async def _fetch(self, session: aiohttp.ClientSession) -> None:
        """Fetch once; what is wrong becomes ``_failure``."""
        try:
            document = await self._download(session)
            keys = read_key_set(document, allow_secrets=False)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            reason = reason_of(error)
            if reason != self._failure:
                _log.warning("the token keys cannot be fetched", extra={"reason": reason})
            self._failure = reason
            return
        if keys.skipped != self._keys.skipped:
            _log.info("keys of the set are not used", extra={"keys": "; ".join(keys.skipped)})
        if self._failure is not None:
            _log.info("the token keys were fetched", extra={"usable": len(keys.by_id) or 1})
        self._keys, self._failure = keys, None

    async def _download(self, session: aiohttp.ClientSession) -> bytes:
        async with session.get(
            self._url,
            allow_redirects=False,
            headers={"Accept": "application/jwk-set+json, application/json"},
        ) as response:
            if response.status != HTTPStatus.OK:
                raise UnusableKey(f"the answer's status is {response.status}")
            document = bytearray()
            async for part in response.content.iter_any():
                document += part
                if len(document) > MAX_SET_BYTES:
                    raise UnusableKey(f"the answer has more than {MAX_SET_BYTES} bytes")
            return bytes(document)


def reason_of(error: Exception) -> str:
    """What to say of an error; those of HTTP and files only by kind, their texts may quote."""
    if isinstance(error, UnusableKey):
        return str(error)
    if isinstance(error, TimeoutError):
        return "no answer in time"
    if isinstance(error, OSError) and error.strerror and not isinstance(error, aiohttp.ClientError):
        return error.strerror
    return type(error).__name__


def open_keys(settings: LookupJwt) -> Keys:
    """The configured keys. Raises ConfigurationError that names the setting at fault."""
    if settings.jwks_url is not None:
        return RemoteKeys(settings.jwks_url, settings.jwks_max_age)
    name, value, path, read = _source(settings)
    try:
        if path is not None:
            return FileKeys(path, read)
        assert value is not None, "the settings checked that there is a key"
        return FixedKeys(read(value.encode()))
    except (OSError, UnusableKey) as error:
        where = "" if path is None else f"{path}: "
        problem = f"lookup.jwt.{name} cannot be used: {where}{reason_of(error)}"
        raise ConfigurationError([problem]) from None


def _source(
    settings: LookupJwt,
) -> tuple[str, str | None, Path | None, Callable[[bytes], KeySet]]:
    """The name of the setting, its value, its file, and what reads either."""
    if settings.jwks_file is not None:
        return "jwks_file", None, settings.jwks_file, _read_own_set
    if settings.secret is not None:
        name = "secret" if settings.secret_file is None else "secret_file"
        return name, settings.secret.get_secret_value(), settings.secret_file, _read_secret
    name = "public_key" if settings.public_key_file is None else "public_key_file"
    return name, settings.public_key, settings.public_key_file, _read_public_key


def _read_secret(content: bytes) -> KeySet:
    return one_key(secret_key(content.removesuffix(b"\n").removesuffix(b"\r")))


def _read_public_key(content: bytes) -> KeySet:
    return one_key(public_key(content))


def _read_own_set(content: bytes) -> KeySet:
    return read_key_set(content, allow_secrets=True)
