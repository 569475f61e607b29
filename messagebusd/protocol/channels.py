"""Channel names: which are valid, which are reserved, and how sites are written into them.

A *channel* is what clients and publishers say (``/topic/1``). The *stored name* is what stores
and the hub's index use: the same, followed by ``$|$`` and the site where there is one. Names
below ``/global/`` belong to every site and are always stored bare. Rules: SPEC 2.9 and 3.1; the
stored form is the Ruby library's (REFERENCE 4.1, 4.2).
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from messagebusd.errors import InvalidChannel, MalformedRequest

GLOBAL_PREFIX = "/global/"
SITE_SEPARATOR = "$|$"
# What the stored payload writes for a pipe; a name that contains it could not be read back.
PIPE_ESCAPE = "$$123$$"

STATUS_CHANNEL = "/__status"
KEEPALIVE_CHANNEL = "/__mb_keepalive__/"
CACHE_CHANNEL = "/distributed_hash"
# What the daemons that share a store tell each other.
CONTROL_CHANNEL = "/__messagebusd_control"
INTERNAL_CHANNELS = frozenset({STATUS_CHANNEL, KEEPALIVE_CHANNEL, CACHE_CHANNEL, CONTROL_CHANNEL})

MAX_CHANNEL_BYTES = 512
MAX_SITE_BYTES = 128

_FORBIDDEN = re.compile(r"[\x00-\x1f\x7f-\x9f]|\$\|\$|\$\$123\$\$")


def validate_channel(channel: str, max_bytes: int = MAX_CHANNEL_BYTES) -> None:
    """Refuse a name that no store could keep or no client could be sent.

    Raises InvalidChannel. The separators are refused in polls as well as in publishes: a poll for
    ``/foo$|$other`` would otherwise read another site's channel.
    """
    if not channel:
        raise InvalidChannel("a channel name must not be empty")
    if not channel.isprintable() or "$" in channel:
        _check_characters(channel)
    if exceeds_bytes(channel, max_bytes):
        raise InvalidChannel(f"a channel name must not be longer than {max_bytes} bytes")


def _check_characters(channel: str) -> None:
    if (found := _FORBIDDEN.search(channel)) is not None:
        if found[0] in (SITE_SEPARATOR, PIPE_ESCAPE):
            raise InvalidChannel(f"a channel name must not contain {found[0]}")
        raise InvalidChannel("a channel name must not contain control characters")
    if "$" in channel and not _survives(channel, "s"):
        raise InvalidChannel("a channel name must not run into the separators $|$ and $$123$$")


def validate_site(site_id: str) -> None:
    """Refuse a site name that could not be told apart in a stored name. Raises MalformedRequest."""
    if not site_id or _FORBIDDEN.search(site_id) or "|" in site_id:
        raise MalformedRequest(
            "a site_id must not be empty, nor contain control characters or a pipe"
        )
    if "$" in site_id and not _survives("/c", site_id):
        raise MalformedRequest("a site_id must not run into the separators $|$ and $$123$$")
    if exceeds_bytes(site_id, MAX_SITE_BYTES):
        raise MalformedRequest(f"a site_id must not be longer than {MAX_SITE_BYTES} bytes")


def exceeds_bytes(text: str, limit: int) -> bool:
    """Whether text takes more than limit bytes as UTF-8; encodes only when it might."""
    length = len(text)
    return length > limit or (length * 4 > limit and len(text.encode()) > limit)


def qualify(channel: str, site_id: str | None) -> str:
    """The stored name of a channel of a site (None: the only site there is)."""
    if site_id is None or channel.startswith(GLOBAL_PREFIX):
        return channel
    return f"{channel}{SITE_SEPARATOR}{site_id}"


def unqualify(stored: str) -> tuple[str, str | None]:
    """The channel and site of a stored name; the reverse of `qualify`."""
    channel, separator, site_id = stored.partition(SITE_SEPARATOR)
    return channel, site_id if separator else None


def escape(stored: str) -> str:
    """A stored name as it stands in payloads, which have pipes between their parts."""
    return stored.replace("|", PIPE_ESCAPE)


def unescape(escaped: str) -> str:
    """The reverse: leftmost first, as the Ruby library does it."""
    return escaped.replace(PIPE_ESCAPE, "|")


def _survives(channel: str, site_id: str) -> bool:
    """Whether a name comes back from a payload: ``/a$|`` and ``/a$$123`` would not."""
    stored = f"{channel}{SITE_SEPARATOR}{site_id}"
    return (
        unescape(escape(channel)) == channel
        and unescape(escape(stored)) == stored
        and unqualify(stored) == (channel, site_id)
    )


class ChannelPatterns:
    """Patterns of channel names: ``*`` stands for any run of characters, also for slashes.

    A pattern matches whole names, and the site is no part of the name.
    """

    def __init__(self, patterns: Sequence[str]) -> None:
        self.patterns = tuple(patterns)
        parts = (
            glob([re.escape(literal) for literal in re.split(r"\*+", each)]) for each in patterns
        )
        self._match = re.compile("|".join(parts), re.DOTALL).fullmatch

    def __contains__(self, channel: str) -> bool:
        return self._match(channel) is not None

    def __str__(self) -> str:
        return ", ".join(self.patterns)


def glob(parts: Sequence[str]) -> str:
    """A regular expression for parts, themselves regular expressions, with anything between them.

    Each one is looked for from the left and then settled (an atomic group): clients choose the
    names, and trying all ways to place the parts would take seconds.
    """
    first, *others = parts
    if not others:
        return first
    *middle, last = others
    return first + "".join(f"(?>.*?{each})" for each in middle) + f".*{last}"
