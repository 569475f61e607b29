"""The workers of one daemon ask each other: each knows its own polls only.

Every worker listens on a socket in a folder that only this daemon's user can enter. Whoever is
asked something about the whole daemon asks the others there, and says whose answer is missing.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any, NamedTuple

import aiohttp
import msgspec

# How long a worker waits for the others.
TIMEOUT_SECONDS = 2.0


def sibling_socket(folder: Path, number: int) -> Path:
    """Where a worker listens for the others."""
    return folder / f"{number}.sock"


class Answers(NamedTuple):
    """What the others said, and the numbers of those that said nothing in time."""

    bodies: list[Any]
    missing: list[int]

    def note(self) -> dict[str, list[int]]:
        """What to add to an answer that is made of these."""
        return {"unavailable_workers": self.missing} if self.missing else {}


class Siblings:
    """The other workers, seen by the one with this number. Alone, it has none."""

    def __init__(self, number: int = 1, workers: int = 1, folder: Path = Path()) -> None:
        self.number = number
        self._others = {
            each: sibling_socket(folder, each) for each in range(1, workers + 1) if each != number
        }

    async def ask(self, path: str, content: object = None) -> Answers:
        """Ask all of them at the same time. What is sent and what comes back is JSON."""
        body = msgspec.json.encode(content)
        found = await asyncio.gather(
            *(_ask(socket, path, body) for socket in self._others.values())
        )
        return Answers(
            [each for each in found if each is not None],
            [number for number, each in zip(self._others, found, strict=True) if each is None],
        )


async def _ask(socket: Path, path: str, body: bytes) -> Any:
    """One answer; None if there is none."""
    try:
        async with (
            aiohttp.ClientSession(
                connector=aiohttp.UnixConnector(str(socket)),
                timeout=aiohttp.ClientTimeout(TIMEOUT_SECONDS),
                raise_for_status=True,
            ) as session,
            session.post(f"http://sibling{path}", data=body) as answer,
        ):
            return msgspec.json.decode(await answer.read())
    except (aiohttp.ClientError, TimeoutError, OSError, msgspec.DecodeError):
        return None
