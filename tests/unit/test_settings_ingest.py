"""The settings of the Redis door: which server has the stream."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
from pydantic import ValidationError

from messagebusd.settings import BackendSettings, RedisInbox

REDIS = BackendSettings.model_validate(
    {"kind": "redis", "redis": {"url": "redis://store/3", "password": "hush"}}
)


def test_without_a_url_the_stream_is_in_the_store() -> None:
    assert RedisInbox().connection(REDIS) is REDIS.redis


def test_where_the_store_is_another_the_stream_is_on_this_machine() -> None:
    for kind in ("memory", "postgres"):
        backend = BackendSettings.model_validate({**REDIS.model_dump(), "kind": kind})
        connection = RedisInbox().connection(backend)
        assert connection.url == "redis://127.0.0.1:6379/0"
        assert connection.password is None


def test_a_url_stands_for_itself() -> None:
    """Above all, the store's password goes to no other server."""
    inbox = RedisInbox(url="redis://inbox/1")
    for backend in (REDIS, BackendSettings()):
        connection = inbox.connection(backend)
        assert connection.url == "redis://inbox/1"
        assert connection.password is None


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"stream": ""}, "stream must not be empty"),
        ({"password": "hush"}, "password needs url as well"),
        ({"username": "me"}, "username needs url as well"),
        ({"sentinels": ["a:1"]}, "sentinels needs url as well"),
    ],
)
def test_what_makes_no_sense_is_refused(settings: Mapping[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        RedisInbox.model_validate(settings)
