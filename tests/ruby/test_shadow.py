"""`messagebusd shadow` between the real gem and the daemon, on one store.

Run only with `MESSAGEBUS_GEM`, see conftest.py.
"""

from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
from aiohttp.test_utils import TestServer

from messagebusd.shadow.compare import Difference
from messagebusd.shadow.mirror import Mirror
from tests.ruby.conftest import StartRuby
from tests.support.daemon import Daemon

# Positions as clients send them: old, new, none, the last few, and ahead.
POLLS: list[dict[str, Any]] = [
    {"/a": 0, "/b": 0, "/empty": 0},
    {"/a": 2, "/b": -1, "/empty": -1},
    {"/a": -1, "/b": -1},
    {"/a": -3, "/b": -100},
    {"/a": 99, "/b": 5, "__seq": 7},
    {"/a": "1", "/b": "", "/global/all": 0},
    {},
]
PEOPLE: list[dict[str, str]] = [
    {},
    {"X-MessageBus-User": "7"},
    {"X-MessageBus-User": "8", "X-MessageBus-Groups": "[1,2]"},
]


async def test_real_answers_are_alike(bus: Daemon, start_ruby: StartRuby) -> None:
    ruby = await start_ruby()
    for number in range(3):
        await ruby.ask("publish", channel="/a", data={"n": number, "text": "größe"})
        await bus.publish("/a", {"from": "here", "n": number})
        await bus.publish("/b", 1.5, user_ids=[7])
        await ruby.ask("publish", channel="/b", data=None, options={"group_ids": [2]})
        await ruby.ask("publish", channel="/b", data="one client", options={"client_ids": ["c1"]})
    await bus.publish("/global/all", [])
    port = await ruby.ask("serve")
    found: list[Difference] = []
    mirror = Mirror(f"http://127.0.0.1:{port}", bus.url, "/", rate=1000, found=found.append)
    async with TestServer(mirror.application()) as served, aiohttp.ClientSession() as session:
        count = 0
        for person in PEOPLE:
            for positions in POLLS:
                for client in ("c1", "c2"):
                    url = served.make_url(f"/message-bus/{client}/poll")
                    async with session.post(url, json=positions, headers=person) as answer:
                        assert answer.status == 204
                    count += 1
                    async with asyncio.timeout(20):
                        while mirror.tally.compared + mirror.tally.unanswered < count:
                            mirror.progress.clear()
                            await mirror.progress.wait()
    assert (found, mirror.tally.unanswered) == ([], 0)
    assert mirror.tally.alike == count
