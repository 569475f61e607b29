"""The whole way once: a store is opened as the daemon opens it, writes, and hears itself."""

from __future__ import annotations

import time
from collections.abc import Collection, Sequence

from messagebusd.backends import open_backend
from messagebusd.doctor.report import Finding, ok, problem
from messagebusd.errors import ConfigurationError, StoreUnavailable
from messagebusd.protocol.message import Message
from messagebusd.settings import BackendSettings


class Deaf:
    """Listens to a store, and what it reports, without any interest."""

    def dispatch(self, messages: Sequence[Message]) -> None: ...

    def channels(self) -> Collection[str]:
        return ()

    def interrupted(self) -> None: ...

    def restarted(self, channels: Collection[str]) -> None: ...

    def store_reconnected(self) -> None: ...

    def store_gap(self, messages: int) -> None: ...

    def store_replayed(self, messages: int) -> None: ...

    def store_ignored(self, reason: str) -> None: ...


async def round_trip(settings: BackendSettings, check: str, advice: str) -> Finding:
    """Publish one keepalive, as every process of the bus does now and then, and hear it.

    ``advice`` is for when that does not work although the server is there.
    """
    deaf = Deaf()
    try:
        backend = open_backend(settings, deaf)
    except ConfigurationError as error:
        return problem(check, str(error), "see messagebusd check-config")
    backend.subscribe(deaf)
    try:
        try:
            await backend.open()
            since = time.monotonic()
            await backend.check()
        finally:
            await backend.close()
    except StoreUnavailable as error:
        return problem(check, f"an announcement did not come back: {error}", advice)
    return ok(check, f"stored, announced and heard in {(time.monotonic() - since) * 1000:.0f} ms")
