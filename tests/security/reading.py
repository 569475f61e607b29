"""Polling as somebody, and what came of it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from typing import Any

from tests.security.identities import Way
from tests.security.people import CHANNEL, GLOBAL_CHANNEL, Person
from tests.support.daemon import Daemon
from tests.support.rawhttp import RawConnection, Response, encode_request

SEPARATOR = b"\r\n|\r\n"
STATUS = "/__status"
# Published last, for everybody: whoever has it has got everything before it.
END = "that is all"

Positions = Mapping[str, int]


def letters_from(position: int) -> Positions:
    return {CHANNEL: position, GLOBAL_CHANNEL: position}


def poll_bytes(
    way: Way,
    person: Person,
    positions: Positions,
    *,
    mode: str = "stream",
    client_id: str | None = None,
    seq: int = 0,
) -> bytes:
    """A poll's request; ``mode`` is poll, long_poll or stream."""
    headers = {"Content-Type": "application/json", **way.credentials(person)}
    if mode == "long_poll":
        headers["Dont-Chunk"] = "true"
    return encode_request(
        "POST",
        f"/message-bus/{client_id or person.client_id}/poll" + "?dlp=t" * (mode == "poll"),
        headers=headers,
        body=json.dumps({**positions, "__seq": seq}).encode(),
    )


def messages(response: Response) -> list[dict[str, Any]]:
    """All messages of an answer, or of the frames of a stream so far."""
    assert response.status == 200, response.body
    if response.framing != "chunked":
        return list(json.loads(response.body))
    body = b"".join(each.data for each in response.chunks)
    return [each for frame in body.split(SEPARATOR) if frame for each in json.loads(frame)]


def texts(response: Response) -> list[str]:
    """What somebody got to read, the end left out."""
    return [
        each["data"]
        for each in messages(response)
        if each["channel"] != STATUS and each["data"] != END
    ]


def moved(positions: Positions, response: Response) -> Positions:
    """The positions after an answer, as the browser client keeps them."""
    after = dict(positions)
    for each in messages(response):
        if each["channel"] == STATUS:
            after.update(each["data"])
        else:
            after[each["channel"]] = each["message_id"]
    return after


async def read_all(daemon: Daemon, way: Way, person: Person, positions: Positions) -> list[str]:
    """What somebody reads by polling until nothing new comes."""
    got: list[str] = []
    while True:
        async with await RawConnection.open(daemon.url) as connection:
            response = await connection.request(poll_bytes(way, person, positions, mode="poll"))
        got += texts(response)
        after = moved(positions, response)
        if after == positions:
            return got
        positions = after


async def parked(daemon: Daemon, count: int) -> None:
    """Wait until so many polls are parked."""
    while sum((await daemon.api("GET", "stats"))["clients"].values()) != count:
        await asyncio.sleep(0.005)
