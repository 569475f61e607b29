"""``messagebusd tail``: follow channels over the API's NDJSON stream, across reconnections."""

from __future__ import annotations

import asyncio
import os
import random
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import AbstractAsyncContextManager

import aiohttp
import click
import msgspec

from messagebusd.cli.api import Api, ApiError, api_options, printable, site_option

_PATH = "/api/v1/subscribe"
_STATUS_CHANNEL = "/__status"
_FIRST_DELAY_SECONDS = 0.5
_MAX_DELAY_SECONDS = 30.0
# The stream has heartbeats: one that is silent for so long is dead, whatever TCP believes.
_SILENCE = aiohttp.ClientTimeout(total=None, sock_connect=10, sock_read=60)


class _End(msgspec.Struct):
    detail: str


class _Line(msgspec.Struct):
    """What matters of a line: a message, or the status or end of the stream."""

    channel: str = ""
    message_id: int = 0
    global_id: int = 0
    data: msgspec.Raw = msgspec.Raw(b"{}")
    end: _End | None = None


class Position:
    """How far the channels were read, and how to ask for what is next.

    Begins after ``last_id``: a message id for each channel, or a global id when none is named. -1
    is now: the stream then begins with a status that says where that is, so that nothing is missed
    if it breaks before its first message.
    """

    def __init__(self, channels: Sequence[str], last_id: int, site: str | None) -> None:
        self._channels = dict.fromkeys(channels, last_id)
        self._global_id = last_id
        self._site = site

    def subscribe(self, api: Api) -> AbstractAsyncContextManager[aiohttp.ClientResponse]:
        """Open the stream after the last message that was seen."""
        if not self._channels:
            query = {"last_id": self._global_id, "site_id": self._site}
            return api.request("GET", _PATH, query=query, timeouts=_SILENCE)
        body: dict[str, object] = {"channels": self._channels}
        if self._site is not None:
            body["site_id"] = self._site
        return api.request("POST", _PATH, body=body, timeouts=_SILENCE)

    def advance(self, line: _Line) -> None:
        """Take note of a message or a status."""
        if line.channel == _STATUS_CHANNEL:
            self._channels.update(msgspec.json.decode(line.data, type=dict[str, int]))
        elif line.channel in self._channels:
            self._channels[line.channel] = line.message_id
        self._global_id = line.global_id


async def follow(api: Api, position: Position) -> None:
    """Print messages until the daemon refuses for good, one JSON object a line.

    Raises ``ApiError`` when it refuses, or when it cannot be reached to begin with.
    """
    clock = asyncio.get_running_loop().time
    connected, attempt = False, 0
    while True:
        reason, wait, opened = f"{api.url} ended the stream", 0.0, clock()
        try:
            async with position.subscribe(api) as response:
                connected = True
                async for text in _lines(response.content):
                    line = msgspec.json.decode(text, type=_Line)
                    if line.end is not None:
                        reason = printable(line.end.detail)
                    elif line.channel:
                        position.advance(line)
                        _print(text, line)
        except ApiError as error:
            if not connected or not error.is_temporary:
                raise
            reason, wait = error.message, error.retry_after
        except msgspec.DecodeError:
            raise api.not_understood() from None
        if clock() - opened > _MAX_DELAY_SECONDS:
            attempt = 0  # it did work for a while
        wait = max(wait, delay(attempt))
        attempt += 1
        click.echo(f"{reason}; reconnecting in {wait:.1f} seconds", err=True)
        await asyncio.sleep(wait)


def _print(text: bytes, line: _Line) -> None:
    if line.channel != _STATUS_CHANNEL:
        sys.stdout.buffer.write(text + b"\n")
        sys.stdout.buffer.flush()


def delay(attempt: int) -> float:
    """Seconds before the next attempt: a random part of a time that doubles, up to a limit."""
    limit = min(_MAX_DELAY_SECONDS, _FIRST_DELAY_SECONDS * 2 ** min(attempt, 10))
    return random.uniform(0, limit)


async def _lines(content: aiohttp.StreamReader) -> AsyncIterator[bytes]:
    # Not content.readline(), which has a limit below the size of a message.
    rest = b""
    async for chunk in content.iter_any():
        *lines, rest = (rest + chunk).split(b"\n")
        for line in lines:
            if line.strip():
                yield line


@click.command()
@click.argument("channels", metavar="[CHANNEL]...", nargs=-1)
@click.option(
    "--last-id",
    type=int,
    default=-1,
    metavar="ID",
    help="Begin after this message id, with -1-N before the last N messages; without any channel, "
    "after this global id. Default: only new messages.",
)
@site_option
@api_options
def tail(api: Api, channels: Sequence[str], last_id: int, site: str | None) -> None:
    """Print messages as they are published.

    One JSON object a line, with its audience. Follows each CHANNEL, or all channels when none is
    named. When the connection breaks, it is made again and continues after the last message that
    was printed. Ctrl-C ends it.

    \b
    Examples:
      messagebusd tail
      messagebusd tail /news /chat/1
      messagebusd tail /news --last-id -11 | jq .data     the last 10 messages first
    """
    try:
        asyncio.run(follow(api, Position(channels, last_id, site)))
    except KeyboardInterrupt:
        pass
    except BrokenPipeError:
        # The reader has gone, as in `tail | head`. What is buffered must not fail again at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
