"""The memory store's ledger: bounded, and honest about it."""

from __future__ import annotations

import pytest

from messagebusd.backends.base import Once, Published
from messagebusd.backends.ledger import OnceLedger
from messagebusd.errors import IdempotencyConflict, StoreUnavailable
from tests.support.clock import FakeClock

HOUR = 3600.0


@pytest.fixture
def clock():
    return FakeClock()


def once(number, fingerprint=b"f"):
    return Once(b"%016d" % number, fingerprint)


def take(ledger, number):
    if (found := ledger.find(once(number))) is None:
        ledger.remember(once(number), Published(number, number))
    return found


def test_it_remembers_for_a_day(clock):
    ledger = OnceLedger(clock=clock)
    assert take(ledger, 1) is None
    clock.advance(24 * HOUR - 1)
    assert take(ledger, 1) == Published(1, 1)
    with pytest.raises(IdempotencyConflict):
        ledger.find(once(1, b"g"))
    clock.advance(2)
    assert take(ledger, 1) is None
    assert len(ledger) == 1


def test_when_full_it_forgets_only_what_is_older_than_an_hour(clock, caplog):
    ledger = OnceLedger(max_entries=3, clock=clock)
    for number in range(3):
        take(ledger, number)
    with pytest.raises(StoreUnavailable):
        take(ledger, 3)
    assert take(ledger, 0) == Published(0, 0)  # what is known needs no room
    clock.advance(HOUR)
    assert take(ledger, 3) is None
    assert take(ledger, 4) is None
    assert len(ledger) == 3
    assert [each.message for each in caplog.records] == [
        "idempotency ledger is full: keys are remembered for less than 24 hours"
    ]
