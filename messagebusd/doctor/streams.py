"""Poll as a browser would, and note when what arrived."""

from __future__ import annotations

import asyncio
import contextlib
import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import aiohttp

SEPARATOR = b"\r\n|\r\n"
# Whatever is at the address may answer what it likes.
MAX_BODY_BYTES = 256 * 1024


@dataclass(slots=True)
class Seen:
    """A response, as it came; times are seconds since the request. ``error`` is why there is none,
    or why it broke off; ``frames`` are the times at which they were complete."""

    status: int = 0
    content_type: str = ""
    encoding: str = ""
    body: bytes = b""
    frames: list[float] = field(default_factory=list)
    ended_at: float | None = None
    error: str = ""
    headers: dict[str, str] = field(default_factory=dict)

    @property
    def is_stream(self) -> bool:
        """Whether it is what a poll that streams gets."""
        return self.status == 200 and self.content_type.startswith("text/plain")


class Poll:
    """One request under way. ``changed`` is set whenever something came; ``seen`` is what."""

    def __init__(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | None,
    ) -> None:
        self.seen = Seen()
        self._changed = asyncio.Event()
        self._task = asyncio.create_task(self._run(session, method, url, headers, body))

    async def _run(
        self,
        session: aiohttp.ClientSession,
        method: str,
        url: str,
        headers: dict[str, str],
        body: bytes | None,
    ) -> None:
        seen, since = self.seen, time.monotonic()
        try:
            async with session.request(
                method, url, headers=headers, data=body, allow_redirects=False
            ) as response:
                seen.status = response.status
                seen.content_type = response.headers.get("Content-Type", "")
                seen.encoding = response.headers.get("Content-Encoding", "")
                seen.headers = {name.lower(): value for name, value in response.headers.items()}
                async for part in response.content.iter_any():
                    seen.body += part
                    now = time.monotonic() - since
                    new = seen.body.count(SEPARATOR) - len(seen.frames)
                    seen.frames += [now] * new
                    self._changed.set()
                    if len(seen.body) > MAX_BODY_BYTES:
                        break
        except aiohttp.ClientConnectorCertificateError:
            seen.error = "its certificate is not valid"
        except aiohttp.ClientConnectorDNSError:
            seen.error = "its host name is not known"
        except aiohttp.ClientConnectorError as error:
            seen.error = os.strerror(error.errno) if error.errno else str(error.os_error)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            seen.error = type(error).__name__
        finally:
            seen.ended_at = time.monotonic() - since
            self._changed.set()

    async def until_frames(self, count: int, within: float) -> bool:
        """Wait for so many frames; whether they came."""
        seen = self.seen
        await self._until(lambda: len(seen.frames) >= count or seen.ended_at is not None, within)
        return len(seen.frames) >= count

    async def until_end(self, within: float) -> bool:
        """Wait for the end; whether it came."""
        await self._until(lambda: self.seen.ended_at is not None, within)
        return self.seen.ended_at is not None

    async def _until(self, condition: Callable[[], bool], within: float) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(within):
                while not condition():
                    self._changed.clear()
                    await self._changed.wait()

    async def close(self) -> None:
        """Leave."""
        self._task.cancel()
        await asyncio.gather(self._task, return_exceptions=True)
