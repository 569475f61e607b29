"""Every recorded scenario against a daemon of its own, on every store.

The scenarios mostly wait, so several are replayed at once while the tests take the results in
turn: each test reports its own scenario, and only those that were selected are replayed.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from functools import partial

import pytest
import pytest_asyncio

from tests.conformance import comparing
from tests.conformance.differences import (
    EXCEPTIONS,
    INTERVALS,
    LIMITS,
    ON_STORES,
    QUIRKS,
    Difference,
)
from tests.conformance.replay import Replay, replay
from tests.conformance.scenarios import DataMissing, Scenario, load_scenarios
from tests.conformance.stores import STORES
from tests.conformance.target import Launch, launch_daemon

AT_ONCE = 12  # scenarios; the replays wait more than they compute
STARTING_AT_ONCE = 2  # daemons; starting one is all computing, and must not disturb the others

try:
    SCENARIOS, MISSING = load_scenarios(INTERVALS), None
except DataMissing as missing:
    SCENARIOS, MISSING = {}, missing


@dataclass(frozen=True, slots=True)
class Result:
    replayed: Replay
    problems: list[str]  # of the daemon itself: its exit code, errors in its log


class Replays:
    """The running replays of a test session, by store and name."""

    def __init__(self, selected: Sequence[tuple[str, str]], launch: Mapping[str, Launch]) -> None:
        self._launch = launch
        self._slots = asyncio.Semaphore(AT_ONCE)
        self._starts = asyncio.Semaphore(STARTING_AT_ONCE)
        self._tasks = {each: asyncio.create_task(self._run(*each)) for each in selected}

    async def result(self, store: str, name: str) -> Result:
        return await self._tasks[store, name]

    async def cancel(self) -> None:
        for task in self._tasks.values():
            task.cancel()
        await asyncio.gather(*self._tasks.values(), return_exceptions=True)

    async def _run(self, store: str, name: str) -> Result:
        scenario = SCENARIOS[name].on(store)
        limits = LIMITS[name].settings if name in LIMITS else {}
        async with self._slots, AsyncExitStack() as stack:
            async with self._starts:
                target = await stack.enter_async_context(self._launch[store](scenario, limits))
            replayed = await replay(as_expected_here(scenario, store), target)
            return Result(replayed, await target.stop())


def as_expected_here(scenario: Scenario, store: str) -> Scenario:
    difference = difference_of(scenario, store)
    return difference.amended(scenario) if difference else scenario


def difference_of(scenario: Scenario, store: str) -> Difference | None:
    general = (QUIRKS if scenario.quirk else EXCEPTIONS).get(scenario.name)
    return ON_STORES.get((store, scenario.name), general)


def verdict(scenario: Scenario, store: str, result: Result) -> list[str]:
    """What is wrong with a result; nothing, when the scenario passes."""
    recorded = comparing.differences(scenario.steps, result.replayed)
    difference = difference_of(scenario, store)
    if difference is None:
        return result.problems + recorded
    wrong = result.problems + comparing.server_errors(result.replayed)
    if not recorded:
        wrong.append(
            f"answers as recorded: remove it from the differences (SPEC {difference.spec})"
        )
    return wrong + [
        f"{sentence} (as amended for SPEC {difference.spec})"
        for sentence in comparing.differences(difference.amended(scenario).steps, result.replayed)
    ]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def replays(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[Replays]:
    # Two hundred daemons start: let them share their bytecode, wherever Python may write it here.
    bytecode = tmp_path_factory.mktemp("bytecode")
    env = {"PYTHONPYCACHEPREFIX": str(bytecode), "PYTHONDONTWRITEBYTECODE": ""}
    parameters = [
        item.callspec.params
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.function is test_scenario
    ]
    selected = [(each["store"], each["name"]) for each in parameters if each["name"] in SCENARIOS]
    launch = {
        store: partial(launch_daemon, STORES[store](request), env=env)
        for store in dict.fromkeys(store for store, _ in selected)
    }
    running = Replays(selected, launch)
    yield running
    await running.cancel()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    # Without the data there is one test, which says so: no test at all would look like success.
    if "name" in metafunc.fixturenames:
        metafunc.parametrize("name", list(SCENARIOS) or ["no data"])
        metafunc.parametrize("store", STORES)


@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.timeout(120)
async def test_scenario(store: str, name: str, replays: Replays) -> None:
    if MISSING is not None:
        pytest.fail(str(MISSING), pytrace=False)
    scenario = SCENARIOS[name].on(store)
    wrong = verdict(scenario, store, await replays.result(store, name))
    if wrong:
        pytest.fail(f"{scenario.description}\n" + "\n".join(wrong), pytrace=False)


def test_tables_name_scenarios() -> None:
    """An entry for a scenario that is not there, or of the other kind, has no effect."""
    if MISSING is not None:
        pytest.fail(str(MISSING), pytrace=False)
    quirks = {name for name, scenario in SCENARIOS.items() if scenario.quirk}
    assert not (LIMITS.keys() | INTERVALS.keys()) - SCENARIOS.keys()
    assert not EXCEPTIONS.keys() - (SCENARIOS.keys() - quirks)
    assert not QUIRKS.keys() - quirks
    assert not {name for _, name in ON_STORES} - SCENARIOS.keys()
    assert {store for store, _ in ON_STORES} <= STORES.keys()
