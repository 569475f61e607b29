"""From a client's positions to what it has missed (SPEC 2.2, 2.5).

`plan` decides, per channel, between replaying a part of the backlog, telling the channel's last
id in a status, and nothing. Reading the backlog is the bus' business.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import NamedTuple

# A client's position on a channel: SPEC 2.2; None is "from now on, without a status".
Position = int | None


class LastId(NamedTuple):
    """Where a channel is: the id of its latest message, and when that was so.

    ``message_id`` may fall, after a channel was forgotten; a message of the channel is newer than
    this exactly if its global id is greater than ``global_id``.
    """

    message_id: int
    global_id: int


class Replay(NamedTuple):
    """A part of a channel's backlog to read: after an id, or the last few stored messages."""

    channel: str
    after_id: int
    lookback: int | None = None


class Plan(NamedTuple):
    """What a poll is owed, before anything is filtered."""

    replays: Sequence[Replay]
    status: dict[str, int]


def plan(positions: Iterable[tuple[str, Position]], last_ids: Mapping[str, LastId]) -> Plan:
    """Compare each channel's position with its last id.

    A position ahead of the channel is treated like -1: after a flush or an expiry the client is
    told where the channel is now (REFERENCE P3).
    """
    replays: list[Replay] = []
    status: dict[str, int] = {}
    for channel, position in positions:
        if position is None:
            continue
        last_id = last_ids[channel].message_id
        if position == -1 or position > last_id:
            status[channel] = last_id
        elif position < -1:
            if last_id:
                replays.append(Replay(channel, 0, lookback=-1 - position))
        elif position < last_id:
            replays.append(Replay(channel, position))
    return Plan(replays, status)
