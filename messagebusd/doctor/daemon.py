"""The running daemon's API, as far as the doctor needs it."""

from __future__ import annotations

from types import TracebackType
from typing import Any, Self

import aiohttp
import msgspec

from messagebusd.settings import FdAddress, Settings, TcpAddress, UnixAddress

TIMEOUT_SECONDS = 5.0
# Addresses that mean all of a machine's.
_ANY = {"0.0.0.0": "127.0.0.1", "::": "::1"}


class DaemonUnreachable(Exception):
    """It could not be asked; the text says why."""


class Daemon:
    """Use as an asynchronous context manager. Raises DaemonUnreachable from every call."""

    def __init__(self, settings: Settings, key: str | None) -> None:
        self._address = settings.server.internal_listen or settings.server.listen
        if key is None and settings.api.key is not None:
            key = settings.api.key.get_secret_value()
        self._headers = {} if key is None else {"Authorization": f"Bearer {key}"}

    async def __aenter__(self) -> Self:
        self._url, connector = "http://daemon", None
        match self._address:
            case UnixAddress(path):
                connector = aiohttp.UnixConnector(str(path))
            case TcpAddress(host, port):
                host = _ANY.get(host, host)
                self._url = f"http://{f'[{host}]' if ':' in host else host}:{port}"
        self._session = aiohttp.ClientSession(
            connector=connector, timeout=aiohttp.ClientTimeout(TIMEOUT_SECONDS)
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def probe(self) -> str:
        """A client id whose arrival is noted."""
        return str((await self._ask("POST", "api/v1/probes"))["client_id"])

    async def arrival(self, client_id: str) -> dict[str, Any] | None:
        """How the latest poll of it arrived; None if none has."""
        found = await self._ask("GET", "api/v1/probes", client_id=client_id)
        arrival: dict[str, Any] | None = found["arrival"]
        return arrival

    async def client(self, client_id: str) -> dict[str, Any] | None:
        """A parked poll."""
        found = await self._ask("GET", "api/v1/clients", client_id=client_id)
        return next(iter(found["clients"]), None)

    async def publish(self, publication: dict[str, Any]) -> None:
        """Publish it."""
        await self._ask("POST", "api/v1/publish", publication)

    async def is_lookup_paused(self) -> bool:
        """Whether the breaker of lookups is open, in any worker."""
        text = await self._read("GET", "metrics", None, {})
        lines = text.decode().splitlines()
        values = [each.split()[1] for each in lines if each.startswith("messagebusd_lookup_paused")]
        return any(float(each) > 0 for each in values)

    async def _ask(self, method: str, path: str, body: object = None, **query: str) -> Any:
        return msgspec.json.decode(await self._read(method, path, body, query))

    async def _read(self, method: str, path: str, body: object, query: dict[str, str]) -> bytes:
        if isinstance(self._address, FdAddress):
            # Not to be looked for: whoever is found by another name would be told the key.
            raise DaemonUnreachable(
                f"the daemon's API is on a socket that it is passed ({self._address}): where that "
                "is, the settings do not say"
            )
        data = None if body is None else msgspec.json.encode(body)
        headers = self._headers if data is None else {**self._headers, **_JSON}
        try:
            async with self._session.request(
                method, f"{self._url}/{path}", params=query, data=data, headers=headers
            ) as response:
                if response.status in (401, 403):
                    raise DaemonUnreachable(
                        "the daemon's API wants a key with the scopes publish and admin "
                        "(MESSAGEBUSD_KEY or --key-file)"
                    )
                if response.status != 200:
                    raise DaemonUnreachable(f"the daemon's API answered {response.status}")
                return await response.read()
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            raise DaemonUnreachable(
                f"the daemon's API was not reached on {self._address}: {type(error).__name__}"
            ) from None


_JSON = {"Content-Type": "application/json"}
