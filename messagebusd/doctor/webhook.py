"""Ask the application who a visitor is that nobody knows, as the daemon would."""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Sequence
from http import HTTPStatus

import msgspec

from messagebusd.doctor.daemon import Daemon, DaemonUnreachable
from messagebusd.doctor.report import Finding, Report, ok, problem, warning
from messagebusd.errors import LookupUnavailable
from messagebusd.identity.answer import AnswerReader, Reply
from messagebusd.identity.application import Application
from messagebusd.identity.base import Identity
from messagebusd.settings import Settings

CLIENT_ID = "messagebusd-doctor"
# Questions that are asked, one after the other.
QUESTIONS = 10
# The part of the budget that the slower of them may take.
SLOW_PART = 0.5


async def examine(settings: Settings, report: Report, host: str, key: str | None) -> None:
    """Ask some questions; ``host`` is the site that the visitor is said to visit. A daemon that
    runs is asked whether it still does; ``key`` is one for its API."""
    async with Daemon(settings, key) as daemon:
        with contextlib.suppress(DaemonUnreachable):
            report.add(judge_breaker(await daemon.is_lookup_paused()))
    webhook = settings.lookup.webhook
    secret = None if webhook.secret is None else webhook.secret.get_secret_value()
    question = _question(settings, host)
    try:
        replies, taken = await _ask(str(webhook.url), secret, question, webhook.timeout, QUESTIONS)
    except LookupUnavailable as error:
        advice = "is the application up, and lookup.webhook.url right, seen from this machine?"
        report.add(problem("webhook.reachable", str(error), advice))
        return
    report.add(ok("webhook.reachable", "the application answers"))
    report.add(judge_latency(taken, webhook.timeout))
    reader = AnswerReader(settings.lookup.id_type, webhook.cache_ttl)
    report.add(judge_answer(replies[-1], reader, signed=secret is not None))
    if secret is None:
        report.add(
            warning(
                "webhook.signature",
                "questions are not signed: whoever reaches the application can ask it who has "
                "which cookie",
                "set lookup.webhook.secret, and have the application check signatures",
            )
        )
    elif replies[-1].status == HTTPStatus.OK:
        other = secrets.token_urlsafe(32)
        try:
            replies, _ = await _ask(str(webhook.url), other, question, webhook.timeout, 1)
            report.add(judge_forgery(replies[0]))
        except LookupUnavailable:
            report.add(ok("webhook.signature", "a question with a wrong signature gets no answer"))


def _question(settings: Settings, host: str) -> bytes:
    return msgspec.json.encode(
        {
            "client_id": CLIENT_ID,
            "method": "POST",
            "path": f"{settings.server.base_route}message-bus/{CLIENT_ID}/poll",
            "query": "",
            "host": host,
            "remote_addr": "127.0.0.1",
            "headers": {"user-agent": CLIENT_ID},
        }
    )


async def _ask(
    url: str, secret: str | None, question: bytes, within: float, times: int
) -> tuple[list[Reply], list[float]]:
    """The replies, and the seconds that each took. Raises LookupUnavailable."""
    application = Application(url, secret)
    await application.open()
    replies, taken = [], []
    try:
        for _ in range(times):
            since = time.monotonic()
            try:
                async with asyncio.timeout(within):
                    replies.append(await application.ask(question))
            except TimeoutError:
                raise LookupUnavailable(
                    f"no answer within lookup.webhook.timeout, {within:g} s"
                ) from None
            taken.append(time.monotonic() - since)
    finally:
        await application.close()
    return replies, taken


def judge_breaker(paused: bool) -> Finding:
    """Whether the daemon leaves the application alone, because it fails."""
    if paused:
        return problem(
            "webhook.breaker",
            "the daemon leaves the application alone for a while, because lookups failed in a row",
            "see webhook.reachable; it is tried again within 15 s, and polls come back meanwhile",
        )
    return ok("webhook.breaker", "the running daemon asks the application")


def judge_latency(taken: Sequence[float], timeout: float) -> Finding:
    """Whether answers come soon enough."""
    ordered = sorted(taken)
    half, most = ordered[len(ordered) // 2], ordered[-1]
    found = (
        f"of {len(ordered)} questions half were answered within {half * 1000:.0f} ms, "
        f"all within {most * 1000:.0f} ms"
    )
    if most > SLOW_PART * timeout:
        return warning(
            "webhook.latency",
            f"{found}; lookup.webhook.timeout is {timeout:g} s, and a poll waits for its answer",
            "see what the application does for this; a longer cache_ttl asks it less often",
        )
    return ok("webhook.latency", found)


def judge_answer(reply: Reply, reader: AnswerReader, *, signed: bool) -> Finding:
    """What the application says of a visitor without credentials."""
    if 400 <= reply.status < 500:
        why = ", or it does not accept the signature (lookup.webhook.secret)" if signed else ""
        return warning(
            "webhook.answer",
            f"it answers {reply.status} for a visitor without cookies: he is turned away{why}",
            "if visitors who are not logged in shall get messages, answer {}",
        )
    try:
        said = reader.read(reply).said
    except LookupUnavailable as error:
        advice = "see the application's log; every poll is told to come back later"
        return problem("webhook.answer", str(error), advice)
    assert isinstance(said, Identity)
    if said.user_id is not None or said.is_admin or said.group_ids:
        return problem(
            "webhook.answer",
            "it takes a visitor without cookies for somebody: so does it with every stranger",
            "answer {} where nobody is logged in",
        )
    site = "" if said.site_id is None else f" of the site {said.site_id}"
    return ok("webhook.answer", f"a visitor without cookies is anonymous{site}")


def judge_forgery(reply: Reply) -> Finding:
    """What the application says to a question that somebody else has signed."""
    if reply.status == HTTPStatus.OK:
        return problem(
            "webhook.signature",
            "the application answers a question with a wrong signature as well: whoever reaches "
            "it can ask it who has which cookie",
            "check webhook-signature there, see docs/lookups.md",
        )
    return ok("webhook.signature", f"accepted, and a wrong one is refused ({reply.status})")
