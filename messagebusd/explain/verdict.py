"""One poll and one message: was it given, and if not, why not?

It is derived, not remembered: a poll that was live when the message was announced was given it,
unless audience or filters withheld it or the poll ended first. One that caught up later read it
from the backlog, if it asked from before it.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from messagebusd.connection import NEVER, CloseReason, Connection, MessageFilter
from messagebusd.protocol.channels import unqualify
from messagebusd.protocol.message import Id, Message
from messagebusd.protocol.requests import Mode
from messagebusd.recent import CaughtUp, Ended


class Outcome(enum.Enum):
    """What became of a message at one poll; of several, the first one here says most."""

    WRITTEN = "written"
    ANSWERED = "answered"
    BACKLOG = "backlog"
    WITHHELD_BY_AUDIENCE = "withheld_by_audience"
    WITHHELD_BY_FILTER = "withheld_by_filter"
    ENDED_AS_SLOW = "ended_as_slow"
    IN_DOUBT = "in_doubt"
    POSITION_BEYOND = "position_beyond"
    ASKED_FOR_NOTHING_OLD = "asked_for_nothing_old"
    ASKED_FOR_THE_LAST = "asked_for_the_last"
    CUT_SHORT = "cut_short"
    NOT_SUBSCRIBED = "not_subscribed"
    OTHER_SITE = "other_site"
    ENDED_BEFORE = "ended_before"
    NOT_RECORDED = "not_recorded"


GIVEN = frozenset({Outcome.WRITTEN, Outcome.ANSWERED, Outcome.BACKLOG})
WITHHELD = frozenset({Outcome.WITHHELD_BY_AUDIENCE, Outcome.WITHHELD_BY_FILTER})


@dataclass(frozen=True, slots=True)
class Moment:
    """When a message was announced in this worker, by turns and time; and how many polls had ended
    until everybody had had his turn, None if that is not known."""

    turn: int
    at: float
    ended: int | None = None


@dataclass(frozen=True, slots=True)
class Poll:
    """A poll, live or ended; times are the hub's. It is a `Viewer`.

    ``since`` is the turn at which it went live, ``until`` that of its end; ``number`` tells which
    of two ended first.
    """

    client_id: str
    user_id: Id | None
    group_ids: frozenset[Id]
    site_id: str | None
    is_admin: bool
    mode: Mode
    channels: tuple[str, ...]
    since: int
    parked_at: float
    until: int | None
    ended_at: float | None
    reason: CloseReason | None
    number: int | None
    caught_up: CaughtUp | None

    @classmethod
    def live(cls, poll: Connection, caught_up: CaughtUp | None) -> Poll:
        """One that is parked, or catching up."""
        return cls._of(poll, poll.parked_at, None, None, None, None, caught_up)

    @classmethod
    def ended(cls, poll: Ended, caught_up: CaughtUp | None) -> Poll:
        """One that is over."""
        return cls._of(
            poll, poll.parked_at, poll.turn, poll.at, poll.reason, poll.number, caught_up
        )

    @classmethod
    def _of(
        cls,
        poll: Connection | Ended,
        parked_at: float,
        until: int | None,
        ended_at: float | None,
        reason: CloseReason | None,
        number: int | None,
        caught_up: CaughtUp | None,
    ) -> Poll:
        return cls(
            poll.client_id,
            poll.user_id,
            poll.group_ids,
            poll.site_id,
            poll.is_admin,
            poll.mode,
            poll.channels,
            poll.since,
            parked_at,
            until,
            ended_at,
            reason,
            number,
            caught_up,
        )

    @property
    def began_at(self) -> float | None:
        """When it had caught up, or was parked."""
        if self.caught_up is not None:
            return self.caught_up.at
        return self.parked_at or self.ended_at

    def position(self, channel: str) -> int | None:
        """From where it asked for this channel, if that is recorded; None is also "from now on"."""
        if self.caught_up is None:
            return None
        by_channel = zip(self.caught_up.channels, self.caught_up.positions, strict=True)
        return next((position for name, position in by_channel if name == channel), None)


def judge(
    poll: Poll,
    channel: str,
    message_id: int,
    message: Message | None,
    moment: Moment | None,
    *,
    last_id: int,
    older_than: float,
    refused_by: Sequence[str],
) -> Outcome:
    """What became of the message at this poll.

    ``message`` is None if it is not stored any more, ``moment`` if its announcement is not
    recorded: then it came before ``older_than``, in the hub's time. ``refused_by`` are the filters
    that withhold it.
    """
    if channel not in poll.channels:
        name = unqualify(channel)[0]
        others = any(unqualify(each)[0] == name for each in poll.channels)
        return Outcome.OTHER_SITE if others else Outcome.NOT_SUBSCRIBED
    if moment is not None and poll.until is not None and poll.until < moment.turn:
        return Outcome.ENDED_BEFORE
    audience = None if message is None else message.audience
    if audience is not None and not audience.allows(poll.user_id, poll.group_ids, poll.client_id):
        return Outcome.WITHHELD_BY_AUDIENCE
    if moment is not None and poll.since < moment.turn:
        return Outcome.WITHHELD_BY_FILTER if refused_by else _live(poll, moment)
    outcome = _catching_up(poll, channel, message_id, moment, last_id)
    if moment is None and outcome is not Outcome.POSITION_BEYOND:
        began_at = None if poll.caught_up is None else poll.caught_up.at
        if message is None or began_at is None or began_at < older_than:
            return Outcome.NOT_RECORDED  # was the message there already when this poll read?
    if outcome is Outcome.BACKLOG and refused_by:
        return Outcome.WITHHELD_BY_FILTER
    return outcome


def _live(poll: Poll, moment: Moment) -> Outcome:
    """It was parked when the message came, and may have it."""
    if poll.mode is Mode.LONG_POLL:
        # Whatever comes first answers it: this, unless something else did in the same moment.
        return Outcome.ANSWERED if poll.reason is CloseReason.ANSWERED else Outcome.IN_DOUBT
    number = poll.number
    if moment.ended is not None and (number is None or number > moment.ended):
        return Outcome.WRITTEN
    if poll.reason is CloseReason.SLOW:
        return Outcome.ENDED_AS_SLOW
    # It ended while the message was on its way to many, before or after its turn.
    return Outcome.IN_DOUBT


def _catching_up(
    poll: Poll, channel: str, message_id: int, moment: Moment | None, last_id: int
) -> Outcome:
    """It went live after the message had come: what it knows of it is from the backlog."""
    caught_up = poll.caught_up
    if caught_up is None:
        return Outcome.NOT_RECORDED
    position = poll.position(channel)
    if position is None or position == -1:
        if moment is not None and caught_up.began < moment.turn:
            return Outcome.IN_DOUBT  # it came while the poll found out where the channel was
        return Outcome.ASKED_FOR_NOTHING_OLD
    if position >= message_id:
        return Outcome.POSITION_BEYOND
    if position < -1 and last_id - message_id >= -1 - position:
        # There were fewer messages then, and ids may have gaps: perhaps it was one of the last.
        return Outcome.ASKED_FOR_THE_LAST
    if caught_up.truncated or caught_up.since == NEVER:
        return Outcome.CUT_SHORT
    return Outcome.BACKLOG


def refusals(
    filters: MessageFilter | None, message: Message | None, poll: Poll, now: float
) -> list[str]:
    """The declared filters that withhold a message from a poll at this time of day."""
    if filters is None or message is None:
        return []
    return filters.refusals(message, poll, poll.client_id, now)
