"""Subscribers of all kinds, down to the bytes: they poll as message-bus.js does, and some badly.

Every poll has a connection of its own. Positions are kept by the ledger's `Reader`.
"""

from __future__ import annotations

import asyncio
import json
import random
import socket
import struct
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from urllib.parse import quote

import jwt

from tests.soak.ledger import Ledger, Reader, Who
from tests.soak.windows import Windows

SEPARATOR = b"\r\n|\r\n"
TOKEN_SECONDS = 24 * 3600.0
# An answer has ended well before this, whatever its interval is: the poll hangs.
HANG_SECONDS = 60.0
NAPS_A_POLL = 2
# Of the answer to a poll that was refused.
REASON_BYTES = 1000


@dataclass(frozen=True, slots=True)
class Habit:
    """How somebody polls.

    ``leaves`` says how he goes away in the middle of a poll, now and then: not at all, by an
    orderly end, or by a reset. ``naps`` are the seconds for which a slow one takes nothing. With
    ``renews`` he comes back as somebody new, who wants what is new.
    """

    name: str
    mode: str = "stream"
    leaves: str = ""
    naps: float = 0.0
    renews: bool = False


STREAM = Habit("stream")
HABITS = (
    STREAM,
    Habit("long poll", mode="long_poll"),
    Habit("immediate", mode="poll"),
    Habit("closes", leaves="close"),
    Habit("resets", leaves="reset"),
    Habit("long poll resets", mode="long_poll", leaves="reset"),
    Habit("renews", leaves="close", renews=True),
    Habit("slow", naps=4.0),
)


class Browser:
    """One subscriber, until cancelled.

    ``address`` is where it polls, by host and port, and ``error`` what it is called when a poll
    breaks off or finds nobody.
    """

    def __init__(
        self,
        ledger: Ledger,
        windows: Windows,
        counts: Counter[str],
        habit: Habit,
        who: Who,
        channels: Sequence[str],
        address: Callable[[], tuple[str, int]],
        secret: str,
        randomness: random.Random,
        *,
        error: str,
        start: int | None = 0,
    ) -> None:
        self.is_parked = False
        self.habit = habit
        self._ledger = ledger
        self._windows = windows
        self._counts = counts
        self._who = who
        self._channels = channels
        self._address = address
        self._random = randomness
        self._secret = secret
        self._error = error
        self._generation = 0
        self._seq = 0
        self.reader: Reader
        self._arrive(start)

    def _arrive(self, start: int | None) -> None:
        who = self._who
        assert who.client_id is not None
        if self._generation:
            who = Who(f"{who.client_id}-{self._generation}", who.user_id, who.group_ids)
        self._generation += 1
        self.reader = self._ledger.reader(
            f"{who.client_id} ({self.habit.name})", who, dict.fromkeys(self._channels, start)
        )
        claims = {
            "sub": who.user_id,
            "groups": sorted(who.group_ids),
            "exp": int(time.time() + TOKEN_SECONDS),
        }
        # PyJWT refuses a subject that is no text, the daemon does not.
        self._token = jwt.api_jws.encode(json.dumps(claims).encode(), self._secret)

    async def run(self) -> None:
        await asyncio.sleep(self._random.uniform(0, 2))  # not everybody at once
        while True:
            try:
                async with asyncio.timeout(HANG_SECONDS):
                    await self._poll()
            except TimeoutError:
                self._windows.met("poll hangs", self.reader.name)
            except (EOFError, OSError) as error:
                self._windows.met(self._error, f"{self.reader.name}: {error!r}")
                await asyncio.sleep(self._random.uniform(0.2, 0.6))
            finally:
                self.is_parked = False

    async def _poll(self) -> None:
        leave_after = None
        if self.habit.leaves and self._random.random() < 0.5:
            leave_after = self._random.uniform(0, 5)
        reader, writer = await self._connect()
        self._seq += 1
        self._counts[f"poll: {self.habit.name}"] += 1
        try:
            writer.write(self._request())
            exchange = asyncio.create_task(self._read(reader))
            try:
                done, _ = await asyncio.wait([exchange], timeout=leave_after)
                if done:
                    await exchange
            finally:
                exchange.cancel()
                with suppress(asyncio.CancelledError, OSError, EOFError):
                    await exchange
            if not done and self.habit.leaves == "reset":
                _reset(writer)
        finally:
            writer.close()
            with suppress(OSError):
                await writer.wait_closed()
        if not done:
            self._counts[f"left by {self.habit.leaves}"] += 1
            await asyncio.sleep(self._random.choice((0.0, 0.5, 3.0)))
            if self.habit.renews and self._random.random() < 0.3:
                self._ledger.leave(self.reader)
                self._arrive(None)
                self._counts["renewed"] += 1
        elif self.habit.mode == "poll":
            await asyncio.sleep(self._random.uniform(1, 3))

    async def _connect(self) -> tuple[asyncio.StreamReader, asyncio.StreamWriter]:
        host, port = self._address()
        if not self.habit.naps:
            return await asyncio.open_connection(host, port)
        # Small segments and buffers, or the system would take megabytes for him, and hide from the
        # daemon that he is slow: the sender's buffer is a multiple of the segment.
        sock = socket.socket()
        sock.setblocking(False)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
        try:
            await asyncio.get_running_loop().sock_connect(sock, (host, port))
        except BaseException:
            sock.close()
            raise
        return await asyncio.open_connection(sock=sock, limit=4096)

    def _request(self) -> bytes:
        pairs = {**self.reader.positions(), "__seq": self._seq}
        body = "&".join(f"{quote(name, safe='')}={at}" for name, at in pairs.items()).encode()
        query = "?dlp=t" if self.habit.mode == "poll" else ""
        dont_chunk = "Dont-Chunk: true\r\n" if self.habit.mode == "long_poll" else ""
        return (
            f"POST /message-bus/{self.reader.who.client_id}/poll{query} HTTP/1.1\r\nHost: bus\r\n"
            f"Authorization: Bearer {self._token}\r\n{dont_chunk}"
            "Content-Type: application/x-www-form-urlencoded\r\nConnection: close\r\n"
            f"Content-Length: {len(body)}\r\n\r\n"
        ).encode() + body

    async def _read(self, reader: asyncio.StreamReader) -> None:
        asked = time.monotonic()
        head = (await reader.readuntil(b"\r\n\r\n")).decode().lower()
        status = int(head.split(" ", 2)[1])
        if status != 200:
            why = (await reader.read(REASON_BYTES)).decode(errors="replace")
            waited = time.monotonic() - asked
            self._windows.met(
                f"poll {status}",
                f"{self.reader.name}, after {waited:.1f} s: {' '.join(why.split())}",
            )
            # Retry-After is taken as read, in part: a soak has little time for it.
            await asyncio.sleep(self._random.uniform(0.3, 1.0))
            return
        self.is_parked = True
        if "transfer-encoding: chunked" in head:
            rest, naps = b"", NAPS_A_POLL if self.habit.naps else 0
            is_live = False  # the first frame is what was missed, the others come as they happen
            while size := int(await reader.readuntil(b"\r\n"), 16):
                rest += (await reader.readexactly(size + 2))[:-2]
                *frames, rest = rest.split(SEPARATOR)
                for frame in frames:
                    self._take(json.loads(frame), is_live=is_live)
                    is_live = True
                if naps:
                    naps -= 1
                    await asyncio.sleep(self._random.uniform(0, self.habit.naps))
            await reader.readexactly(2)
            # nginx hands an ordinary answer on in chunks where it does not know its length.
            if rest:
                self._take(json.loads(rest))
        else:
            length = int(head.split("content-length:", 1)[1].split("\r\n", 1)[0])
            self._take(json.loads(await reader.readexactly(length)))

    def _take(self, messages: Sequence[Mapping[str, object]], *, is_live: bool = False) -> None:
        for message in messages:
            channel, data = message["channel"], message["data"]
            assert isinstance(channel, str)
            assert isinstance(data, dict)
            if channel == "/__status":
                self.reader.told(data)
            else:
                message_id = message["message_id"]
                assert isinstance(message_id, int)
                self.reader.take(channel, message_id, data["token"])
                self._counts["received by browsers"] += 1
                self._counts["received live"] += is_live


def _reset(writer: asyncio.StreamWriter) -> None:
    """End a connection as a phone does that loses its network: by a reset, without a word."""
    sock = writer.get_extra_info("socket")
    if sock is not None and sock.fileno() >= 0:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    writer.transport.abort()
