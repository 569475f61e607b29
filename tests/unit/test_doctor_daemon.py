"""What the doctor asks the running daemon, and where."""

from __future__ import annotations

import aiohttp
import pytest

from messagebusd.doctor.daemon import Daemon, DaemonUnreachable
from messagebusd.settings import Settings


async def test_nobody_else_is_told_the_key_where_the_address_is_not_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []

    def request(self: aiohttp.ClientSession, method: str, url: str, **options: object) -> None:
        asked.append(url)
        raise aiohttp.ClientError

    monkeypatch.setattr(aiohttp.ClientSession, "request", request)
    settings = Settings.model_validate({"server": {"internal_listen": "fd:3"}})
    async with Daemon(settings, "secret") as daemon:
        with pytest.raises(DaemonUnreachable, match="a socket that it is passed"):
            await daemon.probe()
    assert asked == []
