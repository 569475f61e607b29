"""People who try to be somebody else: with a stolen client id, a forged header, an old identity."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import pytest

from tests.security.identities import Application, Way, by_headers, by_webhook, serving
from tests.security.people import CHANNEL, Person
from tests.security.reading import letters_from, messages, parked, poll_bytes, texts
from tests.support.daemon import Daemon
from tests.support.hosted import HostedDaemon
from tests.support.rawhttp import RawConnection, Response

VICTIM = Person("seven-None", 7, (1,))
THIEF = Person("stranger-None", 9)
NOBODY = Person("nobody-known-None")
WAITING = {"poll": {"long_polling_interval": 60.0}}


@asynccontextmanager
async def bus(folder: Path, way: Way) -> AsyncIterator[Daemon]:
    async with HostedDaemon(folder, {**WAITING, **way.config}) as daemon:
        yield daemon


async def watch(stack: AsyncExitStack, daemon: Daemon, request: bytes) -> Response:
    """Send a poll that parks."""
    connection = await stack.enter_async_context(await RawConnection.open(daemon.url))
    response = connection.send(request)
    await response.chunk_count(1)
    return response


async def ask(daemon: Daemon, request: bytes) -> Response:
    async with await RawConnection.open(daemon.url) as connection:
        return await connection.request(request)


async def heard(response: Response, count: int) -> list[str]:
    assert await response.until(lambda response: len(texts(response)) >= count)
    return texts(response)


@pytest.mark.parametrize("thief", [THIEF, NOBODY, Person("seven-a", 7, (1,), "a")])
@pytest.mark.parametrize("seq", [0, 10**9])
async def test_a_stolen_client_id(tmp_path: Path, thief: Person, seq: int) -> None:
    """Whoever guesses a client id neither ends its poll nor gets what its user gets."""
    async with AsyncExitStack() as stack:
        way = await stack.enter_async_context(by_headers())
        daemon = await stack.enter_async_context(bus(tmp_path, way))
        victims = await watch(stack, daemon, poll_bytes(way, VICTIM, letters_from(-1), seq=5))
        stolen = poll_bytes(way, thief, letters_from(0), client_id=VICTIM.client_id, seq=seq)
        thiefs = await watch(stack, daemon, stolen)
        await parked(daemon, 2)
        await daemon.publish(CHANNEL, "to seven", user_ids=[7])
        await daemon.publish(CHANNEL, "to seven there", user_ids=[7], client_ids=[VICTIM.client_id])
        await daemon.publish(CHANNEL, "to its groups", group_ids=[1])
        for site in ({}, {"site_id": "a"}):
            await daemon.publish(CHANNEL, "to all", **site)
        everything = ["to seven", "to seven there", "to its groups", "to all"]
        assert await heard(victims, 4) == everything
        assert not victims.over
        assert await heard(thiefs, 1) == ["to all"]


async def test_another_user_in_the_same_browser(tmp_path: Path) -> None:
    """After a logout and a login the page polls on, with its client id and its positions."""
    async with AsyncExitStack() as stack:
        way = await stack.enter_async_context(by_headers())
        daemon = await stack.enter_async_context(bus(tmp_path, way))
        await daemon.publish(CHANNEL, "to seven before", user_ids=[7])
        before = await watch(stack, daemon, poll_bytes(way, VICTIM, letters_from(0)))
        now = poll_bytes(way, THIEF, letters_from(0), client_id=VICTIM.client_id, seq=1)
        after = await watch(stack, daemon, now)
        await daemon.publish(CHANNEL, "to seven", user_ids=[7])
        await daemon.publish(CHANNEL, "to nine", user_ids=[9])
        await daemon.publish(CHANNEL, "to all")
        assert await heard(after, 2) == ["to nine", "to all"]
        assert await heard(before, 3) == ["to seven before", "to seven", "to all"]


async def test_groups_that_somebody_has_left(tmp_path: Path) -> None:
    """Invalidated, neither a parked poll nor a cached answer keeps an identity."""
    application = Application(cache_ttl=3600)
    async with AsyncExitStack() as stack:
        way = await stack.enter_async_context(serving(application))
        daemon = await stack.enter_async_context(bus(tmp_path, way))
        first = await watch(stack, daemon, poll_bytes(way, VICTIM, letters_from(-1)))
        await daemon.publish(CHANNEL, "while a member", group_ids=[1])
        assert await heard(first, 1) == ["while a member"]

        application.people[VICTIM.name] = Person(VICTIM.name, 7)
        await daemon.api("POST", "lookups/invalidate", {"user_id": 7})
        await first.finished()
        assert first.complete
        second = await watch(stack, daemon, poll_bytes(way, VICTIM, letters_from(0)))
        await daemon.publish(CHANNEL, "after leaving", group_ids=[1])
        await daemon.publish(CHANNEL, "to all")
        assert await heard(second, 1) == ["to all"]
        assert "after leaving" not in str(messages(first))


@pytest.mark.parametrize(
    "forged",
    [
        {"X-MessageBus-User": "7"},
        {"x-messagebus-user": "7", "X-MessageBus-Groups": "[1]"},
        {"X-MessageBus-User": "7", "X-Forwarded-For": "127.0.0.1"},
        {"X-MessageBus-User": "7", "Forwarded": "for=127.0.0.1", "X-Real-IP": "127.0.0.1"},
        {"X_MessageBus_User": "7"},
    ],
    ids=str,
)
async def test_headers_of_somebody_who_is_no_proxy(tmp_path: Path, forged: dict[str, str]) -> None:
    config = {"server": {"trusted_proxies": ["192.0.2.1"]}, "lookup": {"mode": "headers"}}
    way = Way(config, lambda person: forged)
    async with AsyncExitStack() as stack:
        daemon = await stack.enter_async_context(bus(tmp_path, way))
        await daemon.publish(CHANNEL, "to seven", user_ids=[7])
        await daemon.publish(CHANNEL, "to its groups", group_ids=[1])
        await daemon.publish(CHANNEL, "to all")
        answer = await ask(daemon, poll_bytes(way, THIEF, letters_from(0), mode="poll"))
        assert texts(answer) == ["to all"]


async def test_a_visitor_s_headers_beside_those_of_the_proxy(tmp_path: Path) -> None:
    """A proxy that adds its header to the visitor's vouches for nobody."""
    async with AsyncExitStack() as stack:
        way = await stack.enter_async_context(by_headers())
        daemon = await stack.enter_async_context(bus(tmp_path, way))
        await daemon.publish(CHANNEL, "to seven", user_ids=[7])
        request = poll_bytes(way, THIEF, letters_from(0), mode="poll")
        assert request.count(b"X-MessageBus-User: 9\r\n") == 1
        both = request.replace(
            b"X-MessageBus-User: 9\r\n", b"X-MessageBus-User: 7\r\nX-MessageBus-User: 9\r\n"
        )
        answer = await ask(daemon, both)
        assert answer.status == 403
        assert b"to seven" not in answer.body


async def test_who_is_known_to_the_application_cannot_say_so_in_headers(tmp_path: Path) -> None:
    """Where the application is asked, headers of the other way mean nothing."""
    async with AsyncExitStack() as stack:
        asked = await stack.enter_async_context(by_webhook())
        both = {**asked.credentials(THIEF), "X-MessageBus-User": "7", "X-MessageBus-Groups": "[1]"}
        way = Way(asked.config, lambda person: both)
        daemon = await stack.enter_async_context(bus(tmp_path, way))
        await daemon.publish(CHANNEL, "to seven", user_ids=[7])
        await daemon.publish(CHANNEL, "to its groups", group_ids=[1])
        await daemon.publish(CHANNEL, "to all")
        answer = await ask(daemon, poll_bytes(way, THIEF, letters_from(0), mode="poll"))
        assert texts(answer) == ["to all"]
