"""The answer in one sentence, and what happens next."""

from __future__ import annotations

from typing import Literal

import msgspec

from messagebusd.explain.verdict import GIVEN, WITHHELD, Outcome
from messagebusd.explain.words import Case, Fact, facts
from messagebusd.protocol.channels import unqualify

Conclusion = Literal[
    "given",
    "in_doubt",
    "had_it",
    "withheld",
    "not_allowed",
    "pending",
    "lost",
    "not_asked_for",
    "not_subscribed",
    "not_connected",
    "not_published",
]


class Explanation(msgspec.Struct, frozen=True, kw_only=True):
    """What is answered; ``node`` is whose worker's knowledge this is."""

    node: str
    conclusion: Conclusion
    answer: str
    facts: list[Fact]


def explain(case: Case, node: str) -> Explanation:
    """Put together what is known."""
    conclusion, answer, then = _conclude(case)
    found = list(facts(case))
    if then:
        found.append(Fact(about="next", code=conclusion, text=then))
    return Explanation(node=node, conclusion=conclusion, answer=answer, facts=found)


def _conclude(case: Case) -> tuple[Conclusion, str, str]:
    """The conclusion, in words, and what happens next."""
    who, what = case.person, f"message {case.message_id}"
    outcomes = {each.outcome for each in case.polls}
    heard = any(each.announcement == "announced" for each in case.evidence)
    if outcomes & GIVEN:
        given = [each for each in case.polls if each.outcome in GIVEN]
        clients = sorted({each.client_id for each in given})
        gone = all(each.reason in ("disconnected", "slow") for each in given)
        doubt = (
            "Its connection broke later: if that was before it arrived, the next poll asks for it "
            "again."
            if gone
            else ""
        )
        return "given", f"{who} was given {what}, by client {', '.join(clients)}", doubt
    if case.stored == "not_published" and not heard:
        return "not_published", f"there is no {what} yet, so nobody was given it", ""
    if Outcome.IN_DOUBT in outcomes:
        then = _next_poll(case)
        return "in_doubt", f"{who} may have been given {what} or not: it came in between", then
    if Outcome.ASKED_FOR_THE_LAST in outcomes:
        last = f"{who} asked for the last few messages, and {what} may have been one of them"
        return "in_doubt", last, _next_poll(case)
    if Outcome.POSITION_BEYOND in outcomes:
        told = "it was given it before, or was told by a status to skip it"
        return "had_it", f"the client of {who} asked from beyond {what}: {told}", ""
    if reason := _withheld(case, outcomes):
        skip = "Its polls skip the message: their last frame has a status with its id."
        return "withheld", f"{what} was kept from {who}: {reason}", skip if case.polls else ""
    if not case.rules.may_subscribe(_name(case), case.user_id, True) and (
        case.user_id is not None or not case.polls
    ):
        return "not_allowed", f"{who} may not subscribe to the channel", ""
    if Outcome.ASKED_FOR_NOTHING_OLD in outcomes:
        old = f"{who} polled after {what} had come, and did not ask for messages that old"
        hint = "To get it, a page has to subscribe with the last id that it was rendered with."
        return "not_asked_for", old, hint
    if outcomes & {Outcome.ENDED_AS_SLOW, Outcome.ENDED_BEFORE, Outcome.CUT_SHORT}:
        if case.stored == "trimmed":
            lost = f"{who} was not there when {what} came, and it is not stored any more"
            return "lost", lost, "It is lost to that client: nothing can give it any more."
        return "pending", f"{who} was not given {what} yet", _next_poll(case)
    if outcomes & {Outcome.NOT_SUBSCRIBED, Outcome.OTHER_SITE}:
        return "not_subscribed", f"{who} polled, but not for this channel", ""
    if outcomes:
        return (
            "in_doubt",
            f"whether {who} was given {what} is not recorded, or not any more",
            _next_poll(case),
        )
    return "not_connected", f"no poll of {who} is known on this node", _next_poll(case)


def _name(case: Case) -> str:
    return unqualify(case.channel)[0]


def _withheld(case: Case, outcomes: set[Outcome]) -> str:
    """By what the message was, or would be, withheld; empty if by nothing."""
    if Outcome.WITHHELD_BY_FILTER in outcomes:
        filters = sorted({name for each in case.polls for name in each.filters})
        return f"by the filter {' and '.join(filters)}"
    if outcomes & WITHHELD:
        return "it is for others"
    message = case.message
    if message is None or message.audience is None or case.polls:
        return ""
    groups_known = case.group_ids is not None or message.audience.groups is None
    clients_known = case.client_id is not None or message.audience.clients is None
    if (
        groups_known
        and clients_known
        and not message.audience.allows(
            case.user_id, case.group_ids or frozenset(), case.client_id or ""
        )
    ):
        return "it is for others"
    return ""


def _next_poll(case: Case) -> str:
    if case.stored == "stored":
        return (
            f"The next poll that asks from a position below {case.message_id} gets it from the "
            "backlog."
        )
    return "It is not stored any more: no poll can get it."
