"""The short form of a soak: everything once, on all stores at the same time."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path

import pytest

from tests.soak.browsers import HABITS
from tests.soak.faults import OF_ANY, OF_MEMORY, OF_STORE, STORE_AWAY, Fault
from tests.soak.run import Plan, soak
from tests.soak.world import STORES, Installation


def dealt(place: Installation) -> Sequence[Fault]:
    """Half of what stores suffer for each of them, to save time."""
    if place.world is None:
        return OF_ANY + OF_MEMORY
    return OF_ANY + OF_STORE[place.kind == "postgres" :: 2]


@pytest.mark.timeout(240)
async def test_everything_once() -> None:
    plan = Plan(
        stores=STORES,
        seconds=15,
        seed=20,
        browsers=32,
        interval=2.0,
        pause=(0.1, 0.3),
        sample_every=1.0,
        report_every=5.0,
        faults=dealt,
    )
    # Not a folder of pytest's: those are closed to PostgreSQL's user.
    with tempfile.TemporaryDirectory(prefix="messagebusd-soak-") as folder:
        parts = await soak(plan, Path(folder), print)
    done = {name: 0 for part in parts for name in part.done()}
    for part in parts:
        print(part.crowd.ledger.examples, part.windows.examples, part.nginx_errors)
        outcome = part.outcome()
        assert (outcome.wrongs, outcome.findings) == ({}, [])
        # A store that is slow because the machine is loaded is away, for all that the daemon knows.
        assert not outcome.unexcused.keys() - STORE_AWAY
        for name, count in part.done().items():
            done[name] += count
    for fault in OF_ANY + OF_MEMORY + OF_STORE:
        assert done[f"fault: {fault.name}"], fault.name
    for habit in HABITS:
        assert done[f"poll: {habit.name}"], habit.name
    for what in (
        "batches",
        "checked deliveries",
        "clients/disconnect",
        "left by close",
        "left by reset",
        "lookups/invalidate",
        "messages queued",
        "publishes repeated",
        "received by servers",
    ):
        assert done[what], what
    assert all(part.sampler.samples for part in parts)
