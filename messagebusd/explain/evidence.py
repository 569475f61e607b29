"""What one worker knows of a message and of those who are asked about.

Times leave this module as seconds since the epoch: workers and nodes have different clocks.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Sequence
from typing import Literal, NamedTuple

import msgspec

from messagebusd.connection import NEVER, Connection
from messagebusd.explain.verdict import GIVEN, Moment, Outcome, Poll, judge, refusals
from messagebusd.hub import Hub
from messagebusd.protocol.message import Id, Message
from messagebusd.recent import CaughtUp, Delivered, Ended, Recent

# Polls that an answer tells of, of each worker: somebody may have hundreds of tabs.
MAX_POLLS = 20

# As long as Python reads and shows in any case.
_INTEGER = re.compile(r"[0-9]{1,640}")

Announcement = Literal["announced", "not_yet", "too_long_ago", "unknown"]


class Question(msgspec.Struct, frozen=True):
    """About which message and whom. ``channel`` is the stored name; ``last_id`` the channel's."""

    channel: str
    message_id: int
    last_id: int
    client_id: str | None
    user_id: Id | None
    site_id: str | None

    def is_about(self, client_id: str, user_id: Id | None) -> bool:
        """Whether a poll is one of those asked about, at whatever site."""
        return (self.client_id is None or self.client_id == client_id) and (
            self.user_id is None or self.user_id == user_id
        )


class PollFound(msgspec.Struct, frozen=True, kw_only=True):
    """A poll, and what became of the message there."""

    client_id: str
    user_id: Id | None
    site_id: str | None
    group_ids: list[Id]
    mode: str
    outcome: Outcome
    position: int | None
    began_at: float | None
    ended_at: float | None
    reason: str | None
    filters: list[str]


class DeliveryFound(msgspec.Struct, frozen=True):
    """A delivery that the message was part of: ``messages`` of them together."""

    at: float
    messages: int
    written: int
    withheld: int


class Evidence(msgspec.Struct, frozen=True, kw_only=True):
    """See the module's docstring. ``announcements_since`` and ``polls_since`` say from when on the
    worker knows of announcements and of polls that ended; ``seen_as`` is the same user id as
    another type, if only that one was seen."""

    worker: int
    announcement: Announcement
    announced_at: float | None
    delivery: DeliveryFound | None
    restarted_at: float | None
    announcements_since: float
    polls_since: float
    polls: list[PollFound]
    more_polls: int
    is_waiting: bool
    last_seen_at: float | None
    seen_as: Id | None


def gather(
    hub: Hub,
    question: Question,
    message: Message | None,
    *,
    worker: int,
    now: float,
    wall: float,
) -> Evidence:
    """Look for it; ``now`` is the hub's time and ``wall`` the same as the time of day.

    ``message`` is None if it is not stored, or not any more.
    """
    recent, channel = hub.recent, question.channel

    def time_of_day(at: float) -> float:
        return wall - now + at

    restarted = next((each for each in recent.restarts() if channel in each.channels), None)
    delivery = _delivery(recent, question, 0 if restarted is None else restarted.turn)
    announcement, moment = _announcement(recent, message, delivery)
    polls = _polls(hub, question)
    verdicts = []
    for poll in polls:
        # Filters are asked anew, and may go by the time at which the message came by them.
        at = poll.began_at if moment is None or moment.turn <= poll.since else moment.at
        refused_by = refusals(hub.filters, message, poll, time_of_day(now if at is None else at))
        outcome = judge(
            poll,
            channel,
            question.message_id,
            message,
            moment,
            last_id=question.last_id,
            older_than=recent.announcements_since,
            refused_by=refused_by,
        )
        verdicts.append(_Verdict(poll, outcome, refused_by))
    told = _most_telling(verdicts, moment)
    return Evidence(
        worker=worker,
        announcement=announcement,
        announced_at=time_of_day(moment.at)
        if moment is not None and announcement == "announced"
        else None,
        delivery=None
        if delivery is None
        else DeliveryFound(
            time_of_day(delivery.at), delivery.messages, delivery.written, delivery.withheld
        ),
        restarted_at=None if restarted is None else time_of_day(restarted.at),
        announcements_since=time_of_day(recent.announcements_since),
        polls_since=time_of_day(recent.polls_since),
        polls=[_describe(each, channel, time_of_day) for each in told],
        more_polls=len(verdicts) - len(told),
        is_waiting=any(each.until is None and channel in each.channels for each in polls),
        last_seen_at=max(
            (time_of_day(each.ended_at or now) for each in polls),
            default=None,
        ),
        seen_as=None if polls else _alike(hub, question.user_id),
    )


class _Verdict(NamedTuple):
    poll: Poll
    outcome: Outcome
    refused_by: list[str]


def _delivery(recent: Recent, question: Question, after_turn: int) -> Delivered | None:
    """The latest delivery that the message was part of, of those after a turn."""
    for each in recent.deliveries():
        if each.turn <= after_turn:
            return None
        if (
            each.channel == question.channel
            and each.first_id <= question.message_id <= each.last_id
        ):
            return each
    return None


def _announcement(
    recent: Recent, message: Message | None, delivery: Delivered | None
) -> tuple[Announcement, Moment | None]:
    """Whether and when the message was announced here."""
    if message is None:
        if delivery is None:
            return "unknown", None
        return "announced", Moment(delivery.turn, delivery.at, delivery.ended)
    wanted, ended = message.global_id, None if delivery is None else delivery.ended
    latest = earliest = None
    for each in recent.announcements():
        if each.first_global_id <= wanted <= each.last_global_id:
            return "announced", Moment(each.turn, each.at, ended)
        latest, earliest = latest or each, each
    if latest is None or earliest is None:
        return "unknown", None
    if wanted > latest.last_global_id:
        return "not_yet", Moment(NEVER, latest.at)
    return ("too_long_ago" if wanted < earliest.first_global_id else "unknown"), None


def _polls(hub: Hub, question: Question) -> list[Poll]:
    """The polls asked about; those at other sites only if there are no others."""
    recent = hub.recent
    live = [
        each
        for each in hub.polls_of(question.client_id, question.user_id)
        if question.is_about(each.client_id, each.user_id)
    ]
    ended = [each for each in recent.ends() if question.is_about(each.client_id, each.user_id)]
    clients = {each.client_id for each in live} | {each.client_id for each in ended}
    caught_up: dict[tuple[str, int, int], CaughtUp] = {}
    for record in recent.catch_ups():
        if record.client_id in clients:
            caught_up.setdefault(_key(record), record)
    found = [Poll.live(each, caught_up.get(_key(each))) for each in live]
    found += [Poll.ended(each, caught_up.get(_key(each))) for each in ended]
    here = [each for each in found if each.site_id == question.site_id]
    return here or found


def _key(poll: Connection | Ended | CaughtUp) -> tuple[str, int, int]:
    """What records of one poll have in common."""
    return poll.client_id, poll.seq, poll.since


def _most_telling(verdicts: Sequence[_Verdict], moment: Moment | None) -> list[_Verdict]:
    """Of each client those polls that were live at the moment or were given it, the last one before
    it and the first one after it; in the order of time."""
    told: list[_Verdict] = []
    seen: set[tuple[str, bool]] = set()

    def distance(each: _Verdict) -> tuple[float, float]:
        began_at, ended_at = each.poll.began_at or 0.0, each.poll.ended_at
        if moment is None:
            return list(Outcome).index(each.outcome), -began_at
        ended_at = moment.at if ended_at is None else ended_at
        return max(began_at - moment.at, moment.at - ended_at, 0.0), began_at

    for each in sorted(verdicts, key=distance):
        is_before = each.outcome is Outcome.ENDED_BEFORE
        is_live = moment is not None and each.poll.since < moment.turn and not is_before
        key = each.poll.client_id, is_before
        if len(told) < MAX_POLLS and (is_live or each.outcome in GIVEN or key not in seen):
            told.append(each)
            if not is_live:
                seen.add(key)
    return sorted(told, key=lambda each: each.poll.began_at or 0.0)


def _alike(hub: Hub, user_id: Id | None) -> Id | None:
    """The same id as another type, if somebody polls by it: 7 and "7" are two users."""
    if user_id is None:
        return None
    other: Id
    if isinstance(user_id, int):
        other = str(user_id)
    elif _INTEGER.fullmatch(user_id):
        other = int(user_id)
    else:
        return None
    seen: Iterable[Connection | Ended] = (*hub.polls_of(None, other), *hub.recent.ends())
    return other if any(each.user_id == other for each in seen) else None


def _describe(verdict: _Verdict, channel: str, time_of_day: Callable[[float], float]) -> PollFound:
    poll = verdict.poll

    def maybe(at: float | None) -> float | None:
        return None if at is None else time_of_day(at)

    return PollFound(
        client_id=poll.client_id,
        user_id=poll.user_id,
        site_id=poll.site_id,
        group_ids=sorted(poll.group_ids, key=str),
        mode=poll.mode.value,
        outcome=verdict.outcome,
        position=poll.position(channel),
        began_at=maybe(poll.began_at),
        ended_at=maybe(poll.ended_at),
        reason=None if poll.reason is None else poll.reason.value,
        filters=verdict.refused_by,
    )
