"""Whom proxies speak for, and what clients write there themselves."""

import socket
import time
from ipaddress import ip_network
from types import SimpleNamespace

import pytest
from multidict import CIMultiDict

from messagebusd.http.proxies import TrustedProxies

NETWORKS = [ip_network("10.0.0.0/8"), ip_network("fd00::/8")]


def transport(peer, family=socket.AF_INET):
    extra = {"peername": (peer, 1) if peer else "", "socket": SimpleNamespace(family=family)}
    return SimpleNamespace(get_extra_info=extra.get)


UNIX = transport("", socket.AF_UNIX)


def address(peer, *forwarded, entries=NETWORKS):
    headers = CIMultiDict([("X-Forwarded-For", each) for each in forwarded])
    found = transport(peer) if isinstance(peer, str) else peer
    return TrustedProxies(entries).client_address(found, headers)


@pytest.mark.parametrize(
    ("peer", "forwarded", "client"),
    [
        ("192.0.2.1", [], "192.0.2.1"),
        ("192.0.2.1", ["6.6.6.6"], "192.0.2.1"),
        ("10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["6.6.6.6, 192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["6.6.6.6", "192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["6.6.6.6, 192.0.2.1, 10.0.0.2"], "192.0.2.1"),
        ("10.0.0.1", ["10.0.0.3, 10.0.0.2"], "10.0.0.3"),
        ("10.0.0.1", [], "10.0.0.1"),
        ("10.0.0.1", ["", " , "], "10.0.0.1"),
        ("10.0.0.1", ["192.0.2.1:5555"], "192.0.2.1"),
        ("10.0.0.1", ["[2001:db8::1]:5555"], "2001:db8::1"),
        ("10.0.0.1", ["[2001:db8::1]"], "2001:db8::1"),
        ("10.0.0.1", ["2001:DB8:0::1"], "2001:db8::1"),
        ("10.0.0.1", ["::ffff:192.0.2.1"], "192.0.2.1"),
        ("10.0.0.1", ["6.6.6.6, unknown"], "10.0.0.1"),
        ("10.0.0.1", ["6.6.6.6, <script>, 10.0.0.2"], "10.0.0.2"),
        ("::ffff:10.0.0.1", ["192.0.2.1"], "192.0.2.1"),
        ("::ffff:192.0.2.1", ["6.6.6.6"], "192.0.2.1"),
        ("fe80::1%eth0", [], "fe80::1"),
        ("fd00::1", ["192.0.2.1"], "192.0.2.1"),
    ],
)
def test_the_address_in_front_of_all_trusted_proxies(peer, forwarded, client):
    assert address(peer, *forwarded) == client


def test_sockets_that_have_no_address():
    assert address(UNIX, "192.0.2.1") == ""
    assert address(UNIX, "192.0.2.1", entries=[*NETWORKS, "unix"]) == "192.0.2.1"
    assert address(UNIX, entries=["unix"]) == ""
    assert TrustedProxies(["unix"]).client_address(None, {}) == ""


def test_a_long_header_keeps_nobody_busy():
    proxies = TrustedProxies(NETWORKS)
    headers = CIMultiDict([("X-Forwarded-For", "10.0.0.2," * 200_000)])
    started = time.process_time()
    assert proxies.client_address(transport("10.0.0.1"), headers) == "10.0.0.2"
    once = time.process_time() - started
    started = time.process_time()
    for number in range(100):  # others each time: those that were read before are remembered
        few = [f"10.0.{number}.{each}" for each in range(20)]
        headers = CIMultiDict([("X-Forwarded-For", ",".join(few))])
        proxies.client_address(transport("10.0.0.1"), headers)
    assert once < time.process_time() - started
