"""How it is said: facts in plain words, the answer first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import msgspec

from messagebusd.explain.evidence import Evidence, PollFound
from messagebusd.explain.verdict import Outcome
from messagebusd.protocol.channels import unqualify
from messagebusd.protocol.message import Audience, Id, Message
from messagebusd.protocol.rules import ChannelRule, ChannelRules

# Ids of an audience that are shown.
SHOWN_IDS = 12

Stored = Literal["stored", "trimmed", "not_published"]
About = Literal["message", "audience", "channel", "worker", "poll", "person", "next"]


class Fact(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One thing that is known. ``code`` is for programs; times are seconds since the epoch, and
    ``until`` is the end of what began ``at``."""

    about: About
    code: str
    text: str
    at: float | None = None
    until: float | None = None
    worker: int | None = None
    client_id: str | None = None


class Case(msgspec.Struct, frozen=True, kw_only=True):
    """What is asked, and what store, rules and workers say of it.

    ``group_ids`` are those that the question names; None leaves it to the polls. ``first_id`` is
    the oldest message that the channel still has, None if it has none.
    """

    channel: str
    message_id: int
    user_id: Id | None
    client_id: str | None
    group_ids: frozenset[Id] | None
    message: Message | None
    last_id: int
    first_id: int | None
    rules: ChannelRules
    evidence: Sequence[Evidence]

    @property
    def stored(self) -> Stored:
        """Where the message is."""
        if self.message is not None:
            return "stored"
        return "trimmed" if 0 < self.message_id <= self.last_id else "not_published"

    @property
    def person(self) -> str:
        """Who is asked about, in words."""
        user = "" if self.user_id is None else f"user {shown_id(self.user_id)}"
        client = "" if self.client_id is None else f"client {self.client_id}"
        return f"{user} at {client}" if user and client else user or client

    @property
    def polls(self) -> list[PollFound]:
        """Of all workers."""
        return [poll for each in self.evidence for poll in each.polls]

    @property
    def groups(self) -> frozenset[Id] | None:
        """The groups that the person is in, as far as that is known: by the latest poll."""
        if self.group_ids is not None or not self.polls:
            return self.group_ids
        return frozenset(max(self.polls, key=lambda each: each.began_at or 0.0).group_ids)


def shown_id(value: object) -> str:
    """An id as JSON: 7 and "7" are two."""
    return msgspec.json.encode(value).decode()


def facts(case: Case) -> Iterator[Fact]:
    """All that is known, from the message to the person."""
    yield _message(case)
    for each in case.evidence:
        if each.restarted_at is not None:
            yield Fact(
                about="message",
                code="ids_began_anew",
                text="the ids of this channel began anew: the store had lost its data, or it had "
                "expired. What was published before has the same ids as what came after",
                at=each.restarted_at,
                worker=each.worker,
            )
    yield from _audience(case)
    yield _channel(case)
    for each in case.evidence:
        yield _worker(case, each)
    for each in case.evidence:
        yield from (_poll(case, poll, each.worker) for poll in each.polls)
        if each.more_polls:
            yield Fact(
                about="person",
                code="more_polls",
                text=f"{each.more_polls} more polls of {case.person} are recorded, which were "
                "not near to this message",
                worker=each.worker,
            )
    yield from _person(case)


def _message(case: Case) -> Fact:
    channel, site_id = unqualify(case.channel)
    where = channel if site_id is None else f"{channel} of the site {site_id}"
    if (message := case.message) is not None:
        return Fact(
            about="message",
            code="stored",
            text=f"message {case.message_id} of {where} is stored, with the global id "
            f"{message.global_id}; the channel's last id is {case.last_id}",
        )
    if case.stored == "not_published":
        return Fact(
            about="message",
            code="not_published",
            text=f"{where} has no message {case.message_id}: its last id is {case.last_id}"
            + ("; nothing is published there" if not case.last_id else ""),
        )
    kept = "nothing" if case.first_id is None else f"only what came from {case.first_id} on"
    return Fact(
        about="message",
        code="trimmed",
        text=f"message {case.message_id} of {where} was published and is not stored any more: "
        f"the store has kept {kept} (max_backlog_size, max_backlog_age, or it was deleted). "
        "Whom it was for is not known",
    )


def _audience(case: Case) -> Iterator[Fact]:
    if case.message is None:
        return
    audience = case.message.audience
    if audience is None:
        yield Fact(about="audience", code="everybody", text="it is for everybody who may subscribe")
        return
    yield Fact(about="audience", code="restricted", text=f"it is for {_whom(audience)} only")
    if audience.users is not None and case.user_id not in audience.users:
        alike = [each for each in audience.users if str(each) == str(case.user_id)]
        if case.user_id is not None and alike:
            yield Fact(
                about="audience",
                code="other_type",
                text=f"it names the user {shown_id(alike[0])}, and {shown_id(case.user_id)} is "
                "another one: numbers and text differ (lookup.id_type makes them the same)",
            )
    if case.client_id is None and audience.clients is not None:
        return  # each poll says
    groups = case.groups
    if audience.allows(case.user_id, groups or frozenset(), case.client_id or ""):
        yield Fact(about="audience", code="included", text=f"{case.person} is one of them")
    elif groups is None and audience.groups is not None:
        yield Fact(
            about="audience",
            code="groups_unknown",
            text=f"which groups {case.person} is in is not known here: no poll is recorded",
        )
    else:
        yield Fact(about="audience", code="not_included", text=f"{case.person} is none of them")


def _whom(audience: Audience) -> str:
    def named(kind: str, ids: Sequence[object] | None) -> str:
        if ids is None:
            return ""
        rest = len(ids) - SHOWN_IDS
        shown = ", ".join(map(shown_id, ids[:SHOWN_IDS]))
        more = f" and {rest} more" if rest > 0 else ""
        return f"the {kind}{'' if len(ids) == 1 else 's'} {shown}{more}"

    people = " and ".join(
        filter(None, (named("user", audience.user_ids), named("group", audience.group_ids)))
    )
    clients = named("client", audience.client_ids)
    return f"{clients}, of {people}" if people and clients else people or clients


def _channel(case: Case) -> Fact:
    channel = unqualify(case.channel)[0]
    rule = case.rules.rule(channel)
    if case.user_id is None and case.client_id is not None:
        # Whoever it is, as long as his polls do not say it.
        users = {each.user_id for each in case.polls}
        user_id = users.pop() if len(users) == 1 else None
    else:
        user_id = case.user_id
    if case.rules.may_subscribe(channel, user_id, None):
        code, text = "may_subscribe", f"{case.person} may subscribe to it"
    elif case.rules.may_subscribe(channel, user_id, True):
        code, text = "if_granted", f"{case.person} may subscribe to it if the lookup grants it"
    else:
        code, text = "may_not_subscribe", f"{case.person} may not subscribe to it"
    return Fact(about="channel", code=code, text=f"{text} ({_rule(rule)})")


def _rule(rule: ChannelRule) -> str:
    return f"the rule for {rule.pattern} says {rule.subscribe}"


def _worker(case: Case, found: Evidence) -> Fact:
    def fact(code: str, text: str, at: float | None = None) -> Fact:
        return Fact(about="worker", code=code, text=text, at=at, worker=found.worker)

    delivery = found.delivery
    if found.announcement == "announced":
        if delivery is None:
            nobody = "the message was announced here; nobody was parked for the channel"
            return fact("announced", nobody, found.announced_at)
        together = f", with {delivery.messages - 1} others" if delivery.messages > 1 else ""
        return fact(
            "delivered",
            f"the message was announced here and went out{together}: {delivery.written} written, "
            f"{delivery.withheld} withheld by audience or filters",
            found.announced_at,
        )
    if found.announcement == "not_yet":
        return fact("not_announced_yet", "the message was not announced here yet")
    if case.stored == "not_published":
        return fact("nothing_known", "nothing is known of it here")
    return fact(
        "too_long_ago",
        "the record of announcements begins: too late to tell when the message was announced",
        found.announcements_since,
    )


_REASONS = {
    "answered": "answered",
    "deadline": "ended at its deadline",
    "superseded": "replaced by a newer poll of the same client",
    "disconnected": "left by its client",
    "slow": "ended, because its reader was too slow",
    "ended": "ended by the daemon",
    "drained": "ended because the daemon stopped",
    "full": "answered at once, because the daemon was full",
}


def _poll(case: Case, poll: PollFound, worker: int) -> Fact:
    end = "is still waiting" if poll.reason is None else f"was {_REASONS[poll.reason]}"
    if poll.reason == "deadline":
        end = "ended at its deadline"
    elif poll.reason in ("ended", "drained", "slow"):
        end = f"was {_REASONS[poll.reason]}"
    person = "" if poll.user_id is None else f" of user {shown_id(poll.user_id)}"
    text = f"a {poll.mode.replace('_', ' ')}{person}: {_outcome(case, poll)}; it {end}"
    return Fact(
        about="poll",
        code=poll.outcome.value,
        text=text,
        at=poll.began_at,
        until=poll.ended_at,
        worker=worker,
        client_id=poll.client_id,
    )


def _outcome(case: Case, poll: PollFound) -> str:
    """What became of the message at this poll."""
    channel = unqualify(case.channel)[0]
    match poll.outcome:
        case Outcome.WRITTEN:
            return "it was waiting, and the message was written to it as a frame"
        case Outcome.ANSWERED:
            return "it was waiting, and the message was its answer"
        case Outcome.BACKLOG:
            asked = f"asked from {poll.position}"
            return f"it began after the message, {asked}, and was given it from the backlog"
        case Outcome.WITHHELD_BY_AUDIENCE:
            groups = ", ".join(map(shown_id, poll.group_ids)) or "none"
            return f"the message is not for it (its groups: {groups})"
        case Outcome.WITHHELD_BY_FILTER:
            return f"withheld by the filter {' and '.join(poll.filters)}"
        case Outcome.ENDED_AS_SLOW:
            return "it had too much unsent when the message was to be written, and did not get it"
        case Outcome.IN_DOUBT:
            return (
                "it ended, or began, while the message was on its way; the position of its "
                "client's next poll tells whether it has it"
            )
        case Outcome.POSITION_BEYOND:
            return f"it asked from {poll.position}: its client had that already"
        case Outcome.ASKED_FOR_NOTHING_OLD:
            return (
                "it began after the message and asked for nothing old "
                f"(position {'null' if poll.position is None else poll.position})"
            )
        case Outcome.ASKED_FOR_THE_LAST:
            count = -1 - (poll.position or 0)
            return f"it asked for the last {count} messages; whether it was one is not recorded"
        case Outcome.CUT_SHORT:
            return "its answer ended before its backlog did; its client's next poll goes on there"
        case Outcome.NOT_SUBSCRIBED:
            return f"it did not wait for {channel}: it had not asked for it, or may not have it"
        case Outcome.OTHER_SITE:
            site = "no site" if poll.site_id is None else f"the site {poll.site_id}"
            return f"it waited for {channel} of {site}, which is another channel"
        case Outcome.ENDED_BEFORE:
            return "it was over before the message came"
        case Outcome.NOT_RECORDED:
            return "whether it was told of the message is not recorded"


def _person(case: Case) -> Iterator[Fact]:
    for each in case.evidence:
        if each.seen_as is not None:
            yield Fact(
                about="person",
                code="seen_as_other_type",
                text=f"user {shown_id(each.seen_as)} polls here, which is another one than "
                f"{shown_id(case.user_id)}: numbers and text differ",
                worker=each.worker,
            )
    if not case.polls:
        yield Fact(
            about="person",
            code="never_seen",
            text=f"this node's record of polls begins; it has none of {case.person}",
            at=max(each.polls_since for each in case.evidence),
        )
    elif not any(each.is_waiting for each in case.evidence):
        yield Fact(
            about="person",
            code="last_seen",
            text=f"{case.person} does not wait for it now; last seen on this node",
            at=max(each.last_seen_at or 0.0 for each in case.evidence),
        )
