"""What single values may be, and what is said about those that may not."""

from __future__ import annotations

from ipaddress import IPv4Network, IPv6Network
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from messagebusd.http.poll import FIRST_FRAME_SECONDS
from messagebusd.settings import FdAddress, Rate, Settings, TcpAddress, UnixAddress, parse_address
from messagebusd.settings.lookup import MAX_LOOKUP_SECONDS


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("127.0.0.1:8090", TcpAddress("127.0.0.1", 8090)),
        ("0.0.0.0:0", TcpAddress("0.0.0.0", 0)),
        ("[::1]:65535", TcpAddress("::1", 65535)),
        ("[2001:DB8::0:1]:80", TcpAddress("2001:db8::1", 80)),
        ("localhost:1", TcpAddress("localhost", 1)),
        ("bus.internal.example:80", TcpAddress("bus.internal.example", 80)),
        ("unix:/run/bus.sock", UnixAddress(Path("/run/bus.sock"))),
        ("fd:3", FdAddress(3)),
    ],
)
def test_addresses(text: str, address: object) -> None:
    assert parse_address(text) == address
    assert parse_address(str(address)) == address


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "host:port"),
        ("8090", "host:port"),
        ("localhost", "host:port"),
        (":8090", "needs a host"),
        ("localhost:", "host:port"),
        ("localhost:65536", "host:port"),
        ("localhost:-1", "host:port"),
        ("localhost:٣", "host:port"),
        ("::1:8090", "needs brackets"),
        ("[::1", "needs brackets"),
        ("[forum]:80", "no IPv6 address"),
        ("1.2.3:80", "no IPv4 address"),
        ("256.1.1.1:80", "no IPv4 address"),
        ("http://localhost:80", "needs brackets"),
        ("-a:80", "host:port"),
        ("a b:80", "host:port"),
        ("unix:bus.sock", "absolute path"),
        ("unix:", "absolute path"),
        ("unix:/" + "x" * 103, "103 bytes"),
        ("fd:2", "3 or more"),
        ("fd:x", "3 or more"),
        ("fd:", "3 or more"),
    ],
)
def test_wrong_addresses(text: str, problem: str) -> None:
    with pytest.raises(ValueError, match=problem):
        parse_address(text)


@pytest.mark.parametrize(
    ("text", "is_local"),
    [
        ("127.0.0.1:1", True),
        ("127.9.9.9:1", True),
        ("[::1]:1", True),
        ("localhost:1", True),
        ("unix:/run/bus.sock", True),
        ("0.0.0.0:1", False),
        ("[::]:1", False),
        ("192.0.2.1:1", False),
        ("forum.example:1", False),
        ("fd:3", False),
    ],
)
def test_local_addresses(text: str, is_local: bool) -> None:
    assert parse_address(text).is_local is is_local


@pytest.mark.parametrize(
    ("given", "route"),
    [("", "/"), ("/", "/"), ("//", "/"), ("forum", "/forum/"), ("//a///b", "/a/b/")],
)
def test_base_route_has_one_slash_at_each_end(given: str, route: str) -> None:
    assert Settings.model_validate({"server": {"base_route": given}}).server.base_route == route


def test_trusted_proxies_are_networks_or_unix() -> None:
    server = {"trusted_proxies": ["10.0.0.0/8", "192.0.2.7", "::1", "unix"]}
    assert Settings.model_validate({"server": server}).server.trusted_proxies == (
        IPv4Network("10.0.0.0/8"),
        IPv4Network("192.0.2.7/32"),
        IPv6Network("::1/128"),
        "unix",
    )


@pytest.mark.parametrize(
    ("given", "sent"),
    [
        ("HTTPS://Forum.Example", "https://forum.example"),
        ("https://forum.example:443", "https://forum.example"),
        ("http://forum.example:80", "http://forum.example"),
        ("http://forum.example:443", "http://forum.example:443"),
        ("http://localhost:08080", "http://localhost:8080"),
        ("http://[2001:DB8::1]:8080", "http://[2001:db8::1]:8080"),
        ("capacitor://localhost", "capacitor://localhost"),
        ("*", "*"),
    ],
)
def test_origins_are_compared_as_browsers_send_them(given: str, sent: str) -> None:
    cors = Settings.model_validate({"cors": {"allow_origins": [given]}}).cors
    assert cors.allow_origins == (sent,)


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("https://forum.example/", "without a slash"),
        ("forum.example", "scheme"),
        ("https://a@forum.example", "scheme"),
        ("https://forum.example, https://b.example", "scheme"),
        ("https://forum.example:0", "no valid port"),
        ("https://forum.example:70000", "no valid port"),
        ("https://*.example", "one host"),
        ("https://bücher.example", "in ASCII"),
        ("null", "every page"),
        ("", "scheme"),
    ],
)
def test_wrong_origins(given: str, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Settings.model_validate({"cors": {"allow_origins": [given]}})


@pytest.mark.parametrize(
    ("given", "rate", "shown"),
    [
        ("20/s", Rate(20, 1), "20/s"),
        ("100/10s", Rate(100, 10), "100/10s"),
        ("600/m", Rate(600, 60), "600/60s"),
        ("5/2h", Rate(5, 7200), "5/7200s"),
        ("0", None, None),
        (0, None, None),
    ],
)
def test_rates(given: object, rate: Rate | None, shown: str | None) -> None:
    poll = Settings.model_validate({"poll": {"client_rate": given}}).poll
    assert poll.client_rate == rate
    if rate is not None:
        assert str(rate) == shown
        again = Settings.model_validate({"poll": {"client_rate": shown}}).poll
        assert again.client_rate == rate


@pytest.mark.parametrize(
    ("given", "problem"),
    [
        ("20", "must be a rate"),
        (20, "must be a rate"),
        (False, "must be a rate"),
        ("20/d", "must be a rate"),
        ("20 / s", "must be a rate"),
        ("-1/s", "must be a rate"),
        ("1.5/s", "must be a rate"),
        ("٣/s", "must be a rate"),
        ("", "must be a rate"),
        ("0/s", "more than 0"),
        ("5/0s", "more than 0"),
        ("10000000000/s", "must be a rate"),
    ],
)
def test_wrong_rates(given: object, problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        Settings.model_validate({"api": {"keys": [{**KEY, "rate": given}]}})


KEY = {"name": "forum", "token": "secret", "scopes": ["read"]}
FILTER = {"channel_prefix": "/chat/", "callable": "filters:allow"}


@pytest.mark.parametrize(
    "tree",
    [
        {"server": {"base_route": "/a?b"}},
        {"server": {"base_route": "/a/../b"}},
        {"server": {"base_route": "/a b"}},
        {"server": {"trusted_proxies": ["10.0.0.1/8"]}},
        {"server": {"trusted_proxies": ["proxy.example"]}},
        {"server": {"trusted_proxies": "unix"}},
        {"server": {"shutdown_timeout": -1}},
        {"server": {"listen": 8090}},
        {"poll": {"long_polling_interval": 0}},
        {"poll": {"long_polling_interval": float("inf")}},
        {"poll": {"long_polling_interval": float("nan")}},
        {"poll": {"long_polling_interval": "25"}},
        {"poll": {"long_polling_interval": True}},
        {"poll": {"max_body": 0}},
        {"poll": {"max_body": 1.5}},
        {"poll": {"max_body": True}},
        {"poll": {"enabled": 1}},
        {"poll": {"extra_response_headers": {"X-A": "1\r\nX-B: 2"}}},
        {"poll": {"extra_response_headers": {"X-A": " 1"}}},
        {"poll": {"extra_response_headers": {"X-A": ""}}},
        {"poll": {"extra_response_headers": {"X-A": "ü"}}},
        {"poll": {"extra_response_headers": {"X A": "1"}}},
        {"poll": {"extra_response_headers": {"X-A:": "1"}}},
        {"poll": {"extra_response_headers": {"X-A": "1", "x-a": "2"}}},
        {"poll": {"extra_response_headers": {"Content-Length": "1"}}},
        {"poll": {"extra_response_headers": {"transfer-encoding": "chunked"}}},
        {"poll": {"extra_response_headers": {"CONNECTION": "close"}}},
        {"poll": {"extra_response_headers": []}},
        {"cors": {"allow_origins": ["https://forum.example/"]}},
        {"cors": {"allow_origins": ["forum.example"]}},
        {"cors": {"allow_headers": ["X-A\r\n"]}},
        {"cors": {"expose_headers": [""]}},
        {"cors": {"max_age": -1}},
        {"backend": {"kind": "disk"}},
        {"backend": {"max_backlog_age": 1.5}},
        {"backend": {"memory": {"snapshot_file": ""}}},
        {"backend": {"memory": {"max_bytes": 10}}},
        {"api": {"key": ""}},
        {"api": {"key": "two words"}},
        {"api": {"key": "line\n"}},
        {"api": {"keys": [{**KEY, "name": ""}]}},
        {"api": {"keys": [{**KEY, "name": "a b"}]}},
        {"api": {"keys": [{**KEY, "scopes": []}]}},
        {"api": {"keys": [{**KEY, "scopes": ["write"]}]}},
        {"api": {"keys": [{**KEY, "channels": ["chat"]}]}},
        {"api": {"keys": [{**KEY, "channels": []}]}},
        {"api": {"keys": [{**KEY, "sites": []}]}},
        {"api": {"keys": [{**KEY, "expires": "2030-01-01T00:00:00"}]}},
        {"api": {"keys": [{**KEY, "expires": "tomorrow"}]}},
        {"api": {"keys": [{**KEY, "sha256": "0" * 64}]}},
        {"api": {"keys": [{"name": "forum", "scopes": ["read"]}]}},
        {"api": {"keys": [{"name": "forum", "scopes": ["read"], "sha256": "0" * 63}]}},
        {"api": {"keys": [{"name": "forum", "scopes": ["read"], "sha256": "g" * 64}]}},
        {"api": {"keys": [KEY, {**KEY, "token": "other"}]}},
        {"api": {"keys": [KEY, {**KEY, "name": "other"}]}},
        {"api": {"key": "secret", "keys": [KEY]}},
        {"lookup": {"mode": "webhook"}},
        {"lookup": {"webhook": {"timeout": 2.0}}},
        {"lookup": {"webhook": {"secret": "whsec_no base64"}}},
        {"lookup": {"webhook": {"secret": "whsec_"}}},
        {"lookup": {"webhook": {"forward_headers": ["x:y"]}}},
        {"lookup": {"webhook": {"cache_ignore_headers": ["*"]}}},
        {"lookup": {"webhook": {"cache_ignore_headers": ["Cook*"]}}},
        {"lookup": {"webhook": {"cache_ignore_headers": ["authorization"]}}},
        {"lookup": {"webhook": {"cache_ttl": -1}}},
        {"lookup": {"webhook": {"max_concurrency": 0}}},
        {"sites": {"Forum.example": "forum"}},
        {"sites": {"forum.example:443": "forum"}},
        {"sites": {"*": "forum"}},
        {"sites": {"a.*.example": "forum"}},
        {"sites": {"forum.example": ""}},
        {"sites": {"forum.example": "a|b"}},
        {"sites": {"forum.example": "x" * 129}},
        {"lookup": {"mode": "headers"}},
        {"lookup": {"headers": {"user": "X User"}}},
        {"lookup": {"headers": {"user": "X-A", "groups": "x-a"}}},
        {"filters": [{**FILTER, "channel_prefix": "chat"}]},
        {"filters": [{**FILTER, "callable": "filters.allow"}]},
        {"filters": [{**FILTER, "callable": "filters:allow()"}]},
        {"filters": [{**FILTER, "callable": "os; import:x"}]},
        {"log": {"level": "loud"}},
        {"server": {"listen": "localhost:1", "internal_listen": "localhost:1"}},
        {"server": {"listen": "0.0.0.0:8090"}},
        {"server": {"internal_listen": "[::]:8091"}},
        {"colour": {}},
    ],
)
def test_refused(tree: dict[str, Any]) -> None:
    with pytest.raises(ValidationError):
        Settings.model_validate(tree)


@pytest.mark.parametrize(
    "tree",
    [
        {"server": {"listen": "127.0.0.1:0", "internal_listen": "127.0.0.1:0"}},
        {"server": {"listen": "0.0.0.0:8090", "internal_listen": "127.0.0.1:8091"}},
        {"server": {"listen": "0.0.0.0:8090"}, "api": {"key": "secret"}},
        {"server": {"listen": "0.0.0.0:8090"}, "api": {"keys": [KEY]}},
        {"server": {"listen": "0.0.0.0:8090"}, "api": {"enabled": False}},
        {"server": {"listen": "unix:/run/bus.sock"}},
        {"server": {"shutdown_timeout": 0, "trusted_proxies": ["unix"]}},
        {"poll": {"long_polling_interval": 25, "extra_response_headers": {"X-A": "a, b"}}},
        {"api": {"keys": [{**KEY, "expires": "2030-01-01T00:00:00Z", "channels": ["/chat/*"]}]}},
        {"lookup": {"mode": "headers"}, "server": {"trusted_proxies": ["127.0.0.1"]}},
        {"filters": [FILTER]},
        {"sites": {"forum.example": "forum", "*.example": "blogs", "[::1]": "here"}},
        {"lookup": {"webhook": {"secret": "whsec_aHVzaA==", "timeout": 1.8}}},
    ],
)
def test_accepted(tree: dict[str, Any]) -> None:
    Settings.model_validate(tree)


def test_hashes_are_written_one_way() -> None:
    key = {"name": "forum", "scopes": ["read"], "sha256": "AB" * 32}
    [read] = Settings.model_validate({"api": {"keys": [key]}}).api.keys
    assert read.sha256 == "ab" * 32


def test_settings_cannot_be_changed() -> None:
    settings = Settings()
    with pytest.raises(ValidationError):
        settings.poll.max_body = 1  # type: ignore[misc]


def test_secrets_do_not_show() -> None:
    settings = Settings.model_validate({"api": {"key": "hush-hush", "keys": [KEY]}})
    assert "hush-hush" not in repr(settings) + str(settings) + settings.model_dump_json()
    assert "'secret'" not in repr(settings)


def test_a_lookup_leaves_the_store_time_before_the_first_frame_is_due() -> None:
    assert MAX_LOOKUP_SECONDS < FIRST_FRAME_SECONDS
