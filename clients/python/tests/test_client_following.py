"""Subscriptions of servers: the cases of all clients (clients/vectors/README.md)."""

from __future__ import annotations

from typing import Any

import pytest
from client_vectors import cases

from messagebus_client._following import Channels, Everything, StreamEnded
from messagebus_client.errors import UnexpectedAnswer
from messagebus_client.types import Gap, Notice, Restarted


def noticed(notice: Notice) -> dict[str, Any]:
    if isinstance(notice, Gap):
        return {
            "kind": "gap",
            "channel": notice.channel,
            "after": notice.after_id,
            "up_to": notice.before_id - 1,
        }
    assert isinstance(notice, Restarted)
    return {"kind": "restarted", "channel": notice.channel, "last_id": notice.last_id}


@pytest.mark.parametrize("case", cases("following"))
def test_following(case: dict[str, Any]) -> None:
    is_everything = "last_id" in case
    following = (
        Everything(case["last_id"], None) if is_everything else Channels(case["channels"], None)
    )
    received: list[list[object]] = []
    notices: list[dict[str, Any]] = []
    end = None
    failed = False
    for line in case["lines"]:
        assert end is None
        assert not failed
        try:
            message, news = following.take(line.encode())
        except StreamEnded as ended:
            end = ended.code
            continue
        except UnexpectedAnswer:
            failed = True
            continue
        notices += map(noticed, news)
        if message is not None:
            received.append([message.channel, message.message_id])
    assert received == case["received"]
    assert notices == case["notices"]
    assert end == case.get("end")
    assert failed == case.get("error", False)
    if is_everything:
        assert following.last_id == case["last_id_after"]
    else:
        assert following.positions == case["positions"]
