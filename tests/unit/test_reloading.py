"""Reading the settings again: what comes of it, and what is said of it."""

from __future__ import annotations

import asyncio
import logging
import socket
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from messagebusd.errors import ConfigurationError
from messagebusd.notify import Notifier
from messagebusd.reloading import Outcome, Reloader
from messagebusd.settings import LoadedSettings, load_settings


class World:
    """Settings in a file, and what became of them."""

    def __init__(self, folder: Path, notifier: Notifier | None = None) -> None:
        self._path = folder / "bus.toml"
        self.applied: list[LoadedSettings] = []
        self.outcomes: list[Outcome] = []
        self.problem: Exception | None = None
        self.write("")
        self.first = self.load()
        self.reloader = Reloader(
            self.first, self.load, self._apply, self.outcomes.append, notifier or Notifier()
        )

    def write(self, text: str) -> None:
        self._path.write_text(text)

    def load(self) -> LoadedSettings:
        return load_settings(self._path, {}, {})

    async def _apply(self, loaded: LoadedSettings) -> None:
        if self.problem is not None:
            raise self.problem
        self.applied.append(loaded)


def said(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(each.levelname, each.getMessage()) for each in caplog.records]


async def test_right_settings_are_applied_and_their_names_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    world = World(tmp_path)
    world.write('[api]\nkey = "hush"\n[server]\nworkers = 2\n[backend]\nkind = "redis"')
    assert await world.reloader.reload() == "done"
    [applied] = world.applied
    assert world.reloader.running is applied
    assert applied.settings.server.workers == 1
    assert said(caplog) == [
        ("INFO", "settings reloaded"),
        ("WARNING", "these settings stay as they were until a restart"),
    ]
    assert caplog.records[0].changed == "api.key"
    assert caplog.records[1].keys == "server.workers, backend.kind"
    assert "hush" not in caplog.text


async def test_every_mistake_is_told_and_nothing_applied(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    world = World(tmp_path)
    world.write('[api]\nkey = "hush"\nkeyy = 1\n[poll]\nmax_body = "many"')
    assert await world.reloader.reload() == "refused"
    assert world.applied == []
    assert world.reloader.running is world.first
    assert [level for level, _ in said(caplog)] == ["ERROR"] * 3
    problems = [each.problem for each in caplog.records[:2]]
    assert [each.partition("bus.toml:")[2].partition(":")[0] for each in problems] == ["3", "5"]
    assert "hush" not in caplog.text


@pytest.mark.parametrize(
    ("problem", "told"),
    [
        (ConfigurationError(["one", "two"]), ["one", "two"]),
        (OSError("no room"), ["no room"]),
        (ZeroDivisionError(), []),
    ],
)
async def test_settings_that_cannot_be_applied_are_not_in_force(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, problem: Exception, told: list[str]
) -> None:
    world = World(tmp_path)
    world.problem = problem
    world.write("[poll]\nmax_body = 7")
    assert await world.reloader.reload() == "refused"
    assert world.reloader.running is world.first
    assert [each.problem for each in caplog.records if hasattr(each, "problem")] == told
    assert said(caplog)[-1] == ("ERROR", "settings not reloaded, those of before stay in force")
    world.problem = None
    assert await world.reloader.reload() == "done"


# -- what a service manager is told


@asynccontextmanager
async def _running(reloader: Reloader) -> AsyncIterator[Callable[[], None]]:
    task = asyncio.create_task(reloader.run())
    try:
        yield reloader.ask
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


async def test_the_manager_hears_of_each_reload_also_of_one_that_fails(tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        address = str(tmp_path / "notify")
        manager.bind(address)
        manager.setblocking(False)
        loop = asyncio.get_running_loop()
        notifier = Notifier(address, clock=lambda: 1.5)
        world = World(tmp_path, notifier)
        async with _running(world.reloader):
            for text in ("[poll]\nmax_body = 7", "nonsense"):
                world.write(text)
                world.reloader.ask()
                world.reloader.ask()  # at once is once
                said = [await loop.sock_recv(manager, 1000) for _ in range(2)]
                assert said == [b"RELOADING=1\nMONOTONIC_USEC=1500000", b"READY=1\nSTATUS=serving"]
        assert world.outcomes == ["done", "refused"]
        notifier.close()


async def test_the_manager_does_not_hear_that_a_daemon_is_ready_which_stops(
    tmp_path: Path,
) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        address = str(tmp_path / "notify")
        manager.bind(address)
        manager.setblocking(False)
        loop = asyncio.get_running_loop()
        notifier, go_on = Notifier(address), threading.Event()
        world = World(tmp_path, notifier)

        def load() -> LoadedSettings:
            go_on.wait(10)
            return world.load()

        async with _running(Reloader(world.first, load, world._apply, print, notifier)) as ask:
            ask()
            assert (await loop.sock_recv(manager, 1000)).startswith(b"RELOADING=1")
            notifier.stopping()
        go_on.set()
        assert await loop.sock_recv(manager, 1000) == b"STOPPING=1\nSTATUS=draining"
        with pytest.raises(BlockingIOError):
            manager.recv(1000)
        notifier.close()
