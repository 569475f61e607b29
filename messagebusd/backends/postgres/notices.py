"""What comes by NOTIFY: payloads as the Ruby library writes them, and ids of large messages."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import asyncpg

from messagebusd.backends.base import Observer
from messagebusd.backends.postgres import statements
from messagebusd.protocol.message import Message
from messagebusd.protocol.stored import Decode, decode_payload

# What the Ruby library sends when it shuts down; every Ruby subscriber stops at it.
UNSUBSCRIBE = "$$UNSUBSCRIBE"
# PostgreSQL cuts names at this length, in bytes.
MAX_NAME_BYTES = 63
# Between two warnings of the same kind.
WARNING_SECONDS = 60.0

_LARGE = "_large"

_log = logging.getLogger(__name__)


class Notice(NamedTuple):
    """A notification: an id, and the message unless it is too large or cannot be read."""

    id: int
    message: Message | None
    is_large: bool = False


def large_channel(notify_channel: str) -> str:
    """The channel on which our nodes tell each other the ids of large messages."""
    return notify_channel[: MAX_NAME_BYTES - len(_LARGE)] + _LARGE


class Notices:
    """Collects notifications; ``on_notices`` is given those of one turn of the loop together."""

    def __init__(
        self,
        notify_channel: str,
        observer: Observer,
        decode: Decode,
        on_notices: Callable[[Sequence[Notice]], None],
    ) -> None:
        self._channel = notify_channel
        self._large_channel = large_channel(notify_channel)
        self._observer = observer
        self._decode = decode
        self._on_notices = on_notices
        self._waiting: list[Notice] = []
        self._warned_at = float("-inf")

    async def listen(self, connection: asyncpg.Connection) -> None:
        """Hear what is announced from here on."""
        await connection.add_listener(self._channel, self._on_payload)
        await connection.add_listener(self._large_channel, self._on_large)

    def clear(self) -> None:
        """Forget what came on an earlier connection."""
        self._waiting.clear()

    def _on_payload(self, connection: object, pid: int, channel: str, payload: object) -> None:
        text = str(payload)
        if text == UNSUBSCRIBE:
            self._observer.store_ignored("unsubscribe")
            now = time.monotonic()
            if now - self._warned_at >= WARNING_SECONDS:
                self._warned_at = now
                _log.warning("a Ruby process told all subscribers to stop; messagebusd does not")
            return
        try:
            message = decode_payload(text.encode(), self._decode)
            if message.global_id != message.message_id or message.global_id > statements.LAST_ID:
                raise ValueError("no id of this table")
        except ValueError:
            self._observer.store_ignored("malformed")
            # It may still be a message, in a form that we cannot read: then its id is used up.
            self._take_id(text.partition("|")[0], is_large=False)
            return
        self._add(Notice(message.global_id, message))

    def _on_large(self, connection: object, pid: int, channel: str, payload: object) -> None:
        if not self._take_id(str(payload), is_large=True):
            self._observer.store_ignored("malformed")

    def _take_id(self, text: str, *, is_large: bool) -> bool:
        if not (text.isascii() and text.isdigit() and len(text) < 19):
            return False
        self._add(Notice(int(text), None, is_large))
        return True

    def _add(self, notice: Notice) -> None:
        if not self._waiting:
            asyncio.get_running_loop().call_soon(self._hand_on)
        self._waiting.append(notice)

    def _hand_on(self) -> None:
        notices, self._waiting = self._waiting, []
        if notices:
            self._on_notices(notices)
