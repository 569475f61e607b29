"""Who is counted as whom, and what those are told who come too often."""

from __future__ import annotations

import re
import socket
from ipaddress import ip_network
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from multidict import CIMultiDict

from messagebusd.bus import News
from messagebusd.connection import CloseReason, Connection
from messagebusd.errors import RateLimited
from messagebusd.http.limits import PollGate, take_messages
from messagebusd.http.proxies import TrustedProxies
from messagebusd.hub import Hub
from messagebusd.identity.base import Identity
from messagebusd.protocol import wire
from messagebusd.protocol.message import Message
from messagebusd.protocol.ratelimit import Bucket
from messagebusd.protocol.requests import Mode
from messagebusd.settings import PollSettings, Rate
from messagebusd.settings.keys import KEYS
from tests.support.clock import FakeClock
from tests.support.transport import RecordingTransport

PROXIES = TrustedProxies([ip_network("10.0.0.0/8"), ip_network("fd00::/8"), "unix"])


class Peer:
    """A transport that knows only where it leads; None is a Unix socket."""

    def __init__(self, address: str | None) -> None:
        family = socket.AF_UNIX if address is None else socket.AF_INET
        self._info = {
            "socket": SimpleNamespace(family=family),
            "peername": "" if address is None else (address, 4711),
        }

    def get_extra_info(self, name: str) -> Any:
        return self._info[name]


def counted(peer: str | None, *forwarded: str, proxies: TrustedProxies = PROXIES) -> str:
    headers = CIMultiDict([("X-Forwarded-For", each) for each in forwarded])
    return proxies.counted_address(Peer(peer), headers)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("peer", "forwarded", "address"),
    [
        ("203.0.113.9", [], "203.0.113.9"),
        ("203.0.113.9", ["198.51.100.1"], "203.0.113.9"),  # no proxy of ours: not believed
        ("10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["192.0.2.66, 198.51.100.1"], "198.51.100.1"),
        ("10.0.0.1", ["192.0.2.66", "198.51.100.1, 10.0.0.2"], "198.51.100.1"),
        (None, ["198.51.100.1"], "198.51.100.1"),
        # the first 64 bits of IPv6, and IPv4 as such
        ("2001:db8:1:2:3:4:5:6", [], "2001:db8:1:2::/64"),
        ("10.0.0.1", ["2001:db8:1:2:ffff::1"], "2001:db8:1:2::/64"),
        ("fe80::1%eth0", [], "fe80::/64"),
        ("::ffff:203.0.113.9", [], "203.0.113.9"),
        ("::ffff:10.0.0.1", ["198.51.100.1"], "198.51.100.1"),
        # some proxies add the port
        ("10.0.0.1", ["198.51.100.1:4711"], "198.51.100.1"),
        ("10.0.0.1", ["[2001:db8:1:2::1]:4711"], "2001:db8:1:2::/64"),
        # nobody in particular
        ("10.0.0.1", [], ""),
        ("10.0.0.1", ["10.0.0.2, 10.0.0.3"], ""),
        ("fd00::1", [], ""),
        ("10.0.0.1", ["unknown"], ""),
        ("10.0.0.1", ["x" * 9000], ""),
        (None, [], ""),
    ],
)
def test_what_counts_as_an_address(peer: str | None, forwarded: list[str], address: str) -> None:
    assert counted(peer, *forwarded) == address
    assert counted(peer, *forwarded) == address  # remembered


def test_a_unix_socket_is_believed_only_if_that_was_said() -> None:
    assert counted(None, "198.51.100.1", proxies=TrustedProxies([])) == ""


class World:
    def __init__(self, jitter: float = 0.0, **settings: Any) -> None:
        self.clock = FakeClock()
        self.gate = PollGate(
            PollSettings.model_validate({"client_rate": "0", **settings}),
            PROXIES,
            self.clock,
            lambda: jitter,
        )

    def enter(self, client: str, peer: str | None = "203.0.113.9", *forwarded: str) -> Any:
        headers = CIMultiDict([("X-Forwarded-For", each) for each in forwarded])
        return self.gate.enter(SimpleNamespace(transport=Peer(peer), headers=headers), client)  # type: ignore[arg-type]

    def refused(self, client: str, peer: str | None = "203.0.113.9", *forwarded: str) -> int:
        with pytest.raises(RateLimited) as caught:
            self.enter(client, peer, *forwarded)
        assert caught.value.status == 429
        assert caught.value.code == "rate_limited"
        return caught.value.retry_after


def test_a_clients_polls_are_counted() -> None:
    world = World(client_rate="3/30s")
    for _ in range(3):
        world.enter("a")
    assert world.refused("a") == 10
    world.enter("b")
    world.clock.advance(10.0)
    world.enter("a")
    assert world.refused("a") == 10


def test_a_stranger_uses_up_nothing_of_somebody_elses() -> None:
    world = World(client_rate="3/30s")
    for _ in range(3):
        world.enter("a", "198.51.100.66")
    world.refused("a", "198.51.100.66")
    world.enter("a", "203.0.113.9")
    # Nor by writing the other's address: only what our proxy wrote counts.
    for _ in range(3):
        world.enter("v", "10.0.0.1", "192.0.2.1, 198.51.100.66")
    world.refused("v", "10.0.0.1", "192.0.2.1, 198.51.100.66")
    world.enter("v", "10.0.0.1", "192.0.2.1")


def test_an_addresss_polls_are_counted_over_all_clients() -> None:
    world = World(address_rate="3/30s")
    for number in range(3):
        world.enter(f"client-{number}", "2001:db8:1:2::1")
    assert world.refused("client-3", "2001:db8:1:2:9::9") == 10
    world.enter("client-3", "2001:db8:1:3::1")


@pytest.mark.parametrize("peer", ["10.0.0.1", None])
def test_a_proxy_that_tells_no_address_is_not_one_client(peer: str | None) -> None:
    world = World(address_rate="1/h")
    for number in range(100):
        assert world.enter(f"client-{number}", peer) is None


def test_without_limits_nothing_is_looked_at() -> None:
    world = World()
    for _ in range(1000):
        assert world.gate.enter(None, "a") is None  # type: ignore[arg-type]
    world.gate.count_user(Identity(user_id=1))


def test_a_users_polls_are_counted_over_all_clients() -> None:
    world = World(user_rate="2/30s")
    for _ in range(2):
        world.gate.count_user(Identity(user_id=7))
    with pytest.raises(RateLimited) as caught:
        world.gate.count_user(Identity(user_id=7))
    assert caught.value.counted_as == "rate_limited_user"
    assert caught.value.code == "rate_limited"
    # Others: of another type, of another site, and those who are nobody in particular.
    world.gate.count_user(Identity(user_id="7"))
    world.gate.count_user(Identity(user_id=7, site_id="forum"))
    for _ in range(10):
        world.gate.count_user(Identity())


def test_those_who_are_refused_together_come_back_one_by_one() -> None:
    early, late = (World(jitter, address_rate="30/30s") for jitter in (0.0, 0.999))
    for world in (early, late):
        for number in range(30):
            world.enter(f"client-{number}")
    assert early.refused("x") == 1
    assert late.refused("x") == 31


def test_publishers_are_told_when_there_is_room_for_what_they_have() -> None:
    clock = FakeClock()
    bucket = Bucket(10, 10.0, clock)
    take_messages(bucket, 10, lambda: 0.0)
    for jitter, seconds in ((0.0, 4), (0.5, 6)):
        with pytest.raises(RateLimited) as caught:
            take_messages(bucket, 4, lambda jitter=jitter: jitter)
        assert caught.value.retry_after == seconds
        assert caught.value.counted_as == "rate_limited_key"
    clock.advance(10.0)
    take_messages(bucket, 25, lambda: 0.0)  # a batch larger than all of it
    with pytest.raises(RateLimited) as caught:
        take_messages(bucket, 1, lambda: 0.0)
    assert caught.value.retry_after == 16


PAGE = (Path(__file__).parents[2] / "docs" / "limits.md").read_text()


def test_the_page_about_limits_has_all_of_them() -> None:
    """With their defaults; and no key that is none."""
    named = set(re.findall(r"`((?:poll|api|backend|server)\.[a-z_.]+)`", PAGE))
    assert named <= KEYS.keys()
    for name, key in KEYS.items():
        if re.match(r"poll\.max_|.*_rate$", name):
            [row] = [line for line in PAGE.splitlines() if line.startswith(f"| `{name}`")]
            match key.field.default:
                case None:
                    default = "none"
                case Rate() as rate:
                    default = f'`"{rate}"`'
                case number:
                    default = str(number)
            assert row.split(" | ")[1] == default


# -- what is news


@pytest.mark.parametrize(
    ("positions", "status", "is_news"),
    [
        ({"/a": -1}, {"/a": 5}, False),  # it asked where the channel is
        ({"/a": 9}, {"/a": 5}, False),  # it was ahead
        ({"/a": 5}, {"/a": 5}, False),
        ({"/a": 4}, {"/a": 5}, True),  # hidden messages: it moves on
        ({"/a": 0}, {"/a": 5}, True),
        ({"/a": -1, "/b": 3}, {"/a": 5, "/b": 4}, True),
        ({"/a": None}, {"/a": 5}, False),
        ({}, {"/a": 5}, False),
        ({"/a": 5}, {}, False),
    ],
)
def test_a_status_is_news_if_the_client_gets_on(
    positions: dict[str, int | None], status: dict[str, int], is_news: bool
) -> None:
    assert News(status=status).go_beyond(positions) is is_news


def parked(bucket: Bucket) -> tuple[Connection, Hub, FakeClock]:
    class Observer:
        def poll_ended(self, mode: Mode, reason: CloseReason) -> None: ...
        def dispatched(self, delivery: object) -> None: ...

    clock = FakeClock()
    hub = Hub(clock, Observer(), interval=25.0, max_active_clients=9, max_client_buffer=1000)
    connection = Connection(hub, Identity(), "c", 0, Mode.LONG_POLL, ("/a",), wire.poll_headers())
    hub.add(connection)
    connection.settle({"/a": 0})
    connection.bucket = bucket
    connection.park(RecordingTransport(), 0.0)  # type: ignore[arg-type]
    hub.park(connection)
    return connection, hub, clock


def test_a_message_gives_back_what_a_waiting_poll_took() -> None:
    bucket = Bucket(1, 1e6, FakeClock())
    assert bucket.take() == 0.0
    _, hub, _ = parked(bucket)
    assert bucket.take() > 0.0
    hub.dispatch([Message(1, 1, "/a", "/a", None, b"1")])
    assert bucket.take() == 0.0


def test_an_end_without_a_message_gives_back_nothing() -> None:
    for reason in (CloseReason.DEADLINE, CloseReason.SUPERSEDED, CloseReason.ENDED):
        bucket = Bucket(1, 1e6, FakeClock())
        bucket.take()
        connection, _, _ = parked(bucket)
        connection.close(reason)
        assert bucket.take() > 0.0
    bucket = Bucket(1, 1e6, FakeClock())
    bucket.take()
    connection, _, _ = parked(bucket)
    connection.connection_lost(None)  # cut by the client
    assert bucket.take() > 0.0


def test_other_settings_are_no_fresh_allowance() -> None:
    world = World(client_rate="2/20s", address_rate="3/20s")
    world.enter("a")
    world.enter("a")
    world.refused("a")

    def adopt(**settings: Any) -> None:
        world.gate.adopt(PollSettings.model_validate({"client_rate": "0", **settings}), PROXIES)

    adopt(client_rate="2/20s", address_rate="3/20s")
    world.refused("a")
    adopt(client_rate="3/20s", address_rate="4/20s")  # that poll was counted for the address
    world.enter("a")
    world.refused("a")
    adopt()
    for _ in range(10):
        world.enter("a")
    adopt(client_rate="1/20s")
    world.enter("a")
    world.refused("a")
