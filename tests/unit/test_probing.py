"""Probes: what is noted of them, and for how long."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from multidict import CIMultiDict, CIMultiDictProxy

from messagebusd.http.probing import MAX_NAMES, MAX_PROBES, PROBE_SECONDS, Probes
from messagebusd.http.proxies import TrustedProxies
from tests.support.clock import FakeClock


def call(*headers: tuple[str, str]) -> Any:
    return SimpleNamespace(
        method="POST",
        version=(1, 1),
        headers=CIMultiDictProxy(CIMultiDict(headers)),
        transport=None,
    )


def test_names_are_noted_and_no_secrets():
    probes = Probes(TrustedProxies(()))
    probes.expect("a")
    secret = [("Cookie", "secret"), ("Authorization", "Bearer secret")]
    probes.note(
        "a", call(("Host", "h"), ("X-Forwarded-For", "1"), ("X-Forwarded-For", "2"), *secret)
    )
    arrival = probes.arrival("a")
    assert arrival is not None
    assert "secret" not in repr(arrival)
    assert arrival.headers == ["authorization", "cookie", "host", "x-forwarded-for"]
    assert (arrival.host, arrival.forwarded_for, arrival.forwarded_proto) == ("h", "1, 2", None)
    assert (arrival.version, arrival.peer, arrival.trusted) == ("1.1", "", False)


def test_what_comes_is_bounded():
    probes = Probes(TrustedProxies(()))
    probes.expect("a")
    probes.note("a", call(("Host", "x" * 9999 + "\udcff"), *((f"x-{i}", "") for i in range(999))))
    arrival = probes.arrival("a")
    assert arrival is not None
    assert len(arrival.host or "") < 1000
    assert len(arrival.headers) == MAX_NAMES


def test_probes_are_forgotten():
    clock = FakeClock()
    probes = Probes(TrustedProxies(()), clock)
    for number in range(MAX_PROBES + 10):
        probes.expect(f"p{number}")
        probes.note(f"p{number}", call())
    assert len(probes.expected) == MAX_PROBES
    assert probes.arrival("p0") is None
    assert probes.arrival(f"p{MAX_PROBES + 9}") is not None
    clock.advance(PROBE_SECONDS)
    probes.expect("last")
    assert set(probes.expected) == {"last"}
    assert probes.arrival(f"p{MAX_PROBES + 9}") is None
