"""The names of the keys: the Ruby library's (`protocol.stored`), and two of our own."""

from __future__ import annotations

from messagebusd.backends.base import Once
from messagebusd.protocol import stored


class Keys:
    """All keys under a prefix. Channels are stored names."""

    def __init__(self, prefix: str) -> None:
        self.prefix = prefix
        self.global_id = stored.global_id_key(prefix)
        self.global_backlog = stored.global_backlog_key(prefix)
        # A random mark that goes when the data goes. Its name is such that the Ruby library's
        # reset deletes it with all the rest.
        self.life = f"{prefix}__mb_messagebusd_life"

    def channel_id(self, channel: str) -> str:
        """The channel's last id."""
        return stored.channel_id_key(channel, self.prefix)

    def backlog(self, channel: str) -> str:
        """The channel's messages."""
        return stored.backlog_key(channel, self.prefix)

    def once(self, once: Once) -> str:
        """What was published under a slot."""
        return f"{self.prefix}__messagebusd_once_{once.slot.hex()}"


def count(value: bytes | None) -> int:
    """A counter's value; anybody may have written it."""
    return int(value) if value is not None and value.isdigit() and len(value) < 20 else 0
