"""The daemon itself breaks, on the memory store: a slow reader, a disconnect of everybody."""

from __future__ import annotations

import asyncio

from tests.conftest import StartDaemon
from tests.faults.traffic import traffic

CONFIG = {
    "server": {"trusted_proxies": ["127.0.0.1"]},
    "poll": {"long_polling_interval": 2.0},
    "lookup": {"mode": "headers"},
}


async def test_polls_that_end_all_the_time(start_daemon: StartDaemon) -> None:
    daemon = await start_daemon(CONFIG)
    async with traffic([daemon.url], daemon.key, subscribers=200, pause=0.02) as running:
        for _ in range(10):
            await running.published_more(30)
            await daemon.api("POST", "clients/disconnect", {"user_id": 1})
            await asyncio.sleep(0.1)
    assert sum(each.polls for each in running.subscribers) > 400
