"""Defaults, file, environment and command line: what wins, where it came from, what is wrong."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime
from pathlib import Path

import pytest

from messagebusd.errors import ConfigurationError
from messagebusd.settings import LoadedSettings, Settings, TcpAddress, load_settings

WriteConfig = Callable[[str], Path]


@pytest.fixture
def write_config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WriteConfig:
    """Write ``bus.toml`` into the working directory."""
    monkeypatch.chdir(tmp_path)

    def write(text: str) -> Path:
        path = Path("bus.toml")
        path.write_text(text, encoding="utf-8")
        return path

    return write


def load(path: Path | None = None, **environ: str) -> LoadedSettings:
    return load_settings(path, environ, {})


def problems(path: Path | None = None, environ: Mapping[str, str] | None = None) -> list[str]:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(path, environ or {}, {})
    assert str(caught.value) == "\n".join(caught.value.problems)
    return caught.value.problems


def problem(path: Path | None = None, **environ: str) -> str:
    [only] = problems(path, environ)
    return only


# -- what wins, and where it came from


def test_defaults() -> None:
    loaded = load()
    assert loaded.settings == Settings()
    assert set(loaded.sources.values()) == {"default"}
    assert loaded.warnings == ()


def test_each_source_wins_over_those_before(write_config: WriteConfig) -> None:
    path = write_config(
        """
        [server]
        listen = "127.0.0.1:1"
        base_route = "/forum"
        [poll]
        max_body = 10
        max_channels = 20
        """
    )
    environ = {"MESSAGEBUSD_SERVER__LISTEN": "127.0.0.1:2", "MESSAGEBUSD_POLL__MAX_BODY": "30"}
    overrides = {"server.listen": "127.0.0.1:3", "backend.kind": None}
    loaded = load_settings(path, environ, overrides)
    assert loaded.settings.server.listen == TcpAddress("127.0.0.1", 3)
    assert loaded.settings.server.base_route == "/forum/"
    assert loaded.settings.poll.max_body == 30
    assert loaded.settings.poll.max_channels == 20
    assert loaded.sources["server.listen"] == "--listen"
    assert loaded.sources["server.base_route"] == "bus.toml:4"
    assert loaded.sources["poll.max_body"] == "MESSAGEBUSD_POLL__MAX_BODY"
    assert loaded.sources["poll.max_channels"] == "bus.toml:7"
    assert loaded.sources["poll.max_client_id"] == "default"
    assert loaded.sources["backend.kind"] == "default"


def test_environment_is_read_as_the_type_of_the_key() -> None:
    settings = load(
        MESSAGEBUSD_POLL__ENABLED="False",
        MESSAGEBUSD_POLL__LONG_POLLING_INTERVAL="20",
        MESSAGEBUSD_BACKEND__MEMORY__MAX_BYTES="9000000",
        MESSAGEBUSD_BACKEND__MEMORY__SNAPSHOT_FILE="/tmp/7",
        MESSAGEBUSD_POLL__EXTRA_RESPONSE_HEADERS='{"X-Served-By": "7"}',
        MESSAGEBUSD_SERVER__TRUSTED_PROXIES='["10.0.0.0/8", "unix"]',
        MESSAGEBUSD_API__KEY="7",
        MESSAGEBUSD_API__KEYS='[{"name": "a", "token": "8", "scopes": ["read"], '
        '"expires": "2030-01-01T00:00:00Z"}]',
        MESSAGEBUSD_FILTERS='[{"channel_prefix": "/chat/", "callable": "filters:allow"}]',
        MESSAGEBUSD_LOG__LEVEL="debug",
    ).settings
    assert settings.poll.enabled is False
    assert settings.poll.long_polling_interval == 20.0
    assert settings.backend.memory.max_bytes == 9_000_000
    assert settings.backend.memory.snapshot_file == Path("/tmp/7")
    assert settings.poll.extra_response_headers == {"X-Served-By": "7"}
    assert len(settings.server.trusted_proxies) == 2
    assert settings.api.key is not None
    assert settings.api.key.get_secret_value() == "7"
    assert settings.api.keys[0].expires == datetime(2030, 1, 1, tzinfo=UTC)
    assert settings.filters[0].callable == "filters:allow"
    assert settings.log.level == "debug"


def test_an_empty_variable_unsets_what_can_be_unset(write_config: WriteConfig) -> None:
    path = write_config('[server]\ninternal_listen = "127.0.0.1:1"\n[api]\nkey_file = "none"')
    loaded = load(path, MESSAGEBUSD_SERVER__INTERNAL_LISTEN="", MESSAGEBUSD_API__KEY_FILE="")
    assert loaded.settings.server.internal_listen is None
    assert loaded.sources["server.internal_listen"] == "MESSAGEBUSD_SERVER__INTERNAL_LISTEN"
    assert "must be" in problem(path, MESSAGEBUSD_LOG__LEVEL="", MESSAGEBUSD_API__KEY_FILE="")


@pytest.mark.parametrize(
    "name",
    [
        "MESSAGEBUSD_URL",
        "MESSAGEBUSD_KEY",
        "MESSAGEBUSD_CONFIG",
        "MESSAGEBUSD_CONFORMANCE",
        # From Kubernetes, for services called messagebusd and messagebusd-api.
        "MESSAGEBUSD_PORT_8090_TCP_ADDR",
        "MESSAGEBUSD_API_SERVICE_HOST",
        "MESSAGEBUSD_API_PORT",
        "POLL__MAX_BODY",
    ],
)
def test_variables_that_are_no_settings(name: str) -> None:
    assert load(**{name: "whatever"}).settings == Settings()


def test_a_long_interval_is_doubted(write_config: WriteConfig) -> None:
    [warning] = load(write_config("[poll]\nlong_polling_interval = 90")).warnings
    assert warning.startswith("bus.toml:2: poll.long_polling_interval is 90 seconds; ")


def test_counting_a_proxy_as_one_client_is_doubted(write_config: WriteConfig) -> None:
    [warning] = load(write_config('[poll]\naddress_rate = "100/s"\n')).warnings
    assert warning.startswith("bus.toml:2: poll.address_rate takes everybody behind a proxy")
    proxied = '[poll]\naddress_rate = "100/s"\n[server]\ntrusted_proxies = ["127.0.0.1"]\n'
    assert load(write_config(proxied)).warnings == ()


OPEN_DOORS = {
    '[server]\ntrusted_proxies = ["127.0.0.1", "::/0"]\n': "server.trusted_proxies",
    "[poll]\nallow_broadcast = true\n": "poll.allow_broadcast",
    '[lookup]\nmode = "webhook"\nwebhook.url = "http://app.example/"\n': "lookup.webhook.url",
    "[lookup.webhook]\n"
    'cache_ignore_headers = ["x-forwarded-*"]\n': "lookup.webhook.cache_ignore_headers",
}


@pytest.mark.parametrize(("text", "key"), OPEN_DOORS.items())
def test_open_doors_are_doubted(write_config: WriteConfig, text: str, key: str) -> None:
    [warning] = load(write_config(text)).warnings
    line = len(text.splitlines())
    assert warning.startswith(f"bus.toml:{line}: {key} ")


@pytest.mark.parametrize(
    "text",
    [
        '[server]\ntrusted_proxies = ["10.0.0.0/8", "unix"]\n',
        '[lookup]\nmode = "webhook"\nwebhook.url = "http://localhost:8000/"\n',
        '[lookup]\nmode = "webhook"\nwebhook.url = "https://app.example/"\n',
        # Containers of one machine, machines of one rack.
        '[lookup]\nmode = "webhook"\nwebhook.url = "http://app:8000/"\n',
        '[lookup]\nmode = "webhook"\nwebhook.url = "http://10.0.0.7:8000/"\n',
        '[lookup.webhook]\nurl = "http://app.example/"\n',
    ],
)
def test_doors_that_are_closed_are_not(write_config: WriteConfig, text: str) -> None:
    assert load(write_config(text)).warnings == ()


@pytest.mark.parametrize("key", ["webhook.url", "jwt.jwks_url"])
@pytest.mark.parametrize("url", ["http://u:hush@app.example/", "ftp://app.example/?token=hush"])
def test_what_is_wrong_with_a_url_is_said_without_it(
    write_config: WriteConfig, key: str, url: str
) -> None:
    """It may hold a password, or a token in its query."""
    with pytest.raises(ConfigurationError) as caught:
        load(write_config(f'[lookup]\n{key} = "{url}"\n'))
    assert f"lookup.{key}" in str(caught.value)
    assert "hush" not in str(caught.value)


# -- what is wrong


def test_all_problems_at_once_in_the_order_of_the_file(write_config: WriteConfig) -> None:
    path = write_config(
        """[server]
listen = "8090"
base_rout = "/x"
[poll]
max_body = -5
[pol]
x = 1
[[api.keys]]
name = "a"
token = "a"
scopes = ["reed"]
[[api.keys]]
nam = "b"
token_file = "missing"
"""
    )
    environ = {
        "MESSAGEBUSD_POLL__MAX_CHANNELS": "many",
        "MESSAGEBUSD_POLL__MAX_BDY": "1",
        "MESSAGEBUSD_CORS__ALLOW_ORIGINS": "https://forum.example",
    }
    found = problems(path, environ)
    assert found[:9] == [
        'bus.toml:2: server.listen must be "host:port", "[v6]:port", "unix:/path" or "fd:N"; '
        'got "8090"',
        "bus.toml:3: server.base_rout is not known; did you mean server.base_route?",
        "bus.toml:5: poll.max_body must be a whole number of bytes, 1 or more; got -5",
        "bus.toml:6: pol is not known; did you mean poll?",
        'bus.toml:11: api.keys[0].scopes[0] must be "publish", "read" or "admin"; got "reed"',
        "bus.toml:12: api.keys[1].name is missing",
        "bus.toml:12: api.keys[1].scopes is missing",
        "bus.toml:13: api.keys[1].nam is not known; did you mean api.keys[1].name?",
        "bus.toml:14: api.keys[1].token_file cannot be read: missing: No such file or directory",
    ]
    assert sorted(found[9:]) == [
        "MESSAGEBUSD_CORS__ALLOW_ORIGINS: cors.allow_origins must be JSON here: "
        "Expecting value: line 1 column 1 (char 0)",
        "MESSAGEBUSD_POLL__MAX_BDY: is not a known setting; "
        "did you mean MESSAGEBUSD_POLL__MAX_BODY?",
        "MESSAGEBUSD_POLL__MAX_CHANNELS: poll.max_channels must be a whole number, 1 or more; "
        'got "many"',
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("[poll]\nenabled = 1", "2: poll.enabled must be true or false; got 1"),
        ('[log]\nformat = "xml"', '2: log.format must be "text" or "json"; got "xml"'),
        ("log = 3", "1: log must be a table; got 3"),
        ("filters = [3]", "1: filters[0] must be a table; got 3"),
        (
            '[[channels]]\npattern = "/user/{userid}"',
            "2: channels[0].pattern has an unknown placeholder {userid}; there is only {user_id}; "
            'got "/user/{userid}"',
        ),
        (
            '[[channels]]\npattern = "/user/{user_id"',
            '2: channels[0].pattern has a brace without its other half; got "/user/{user_id"',
        ),
        (
            '[[channels]]\npattern = "/a/*"\n[[channels]]\npattern = "/b"\n'
            '[[channels]]\npattern = "/a/b/*"',
            "6: channels[2].pattern can never match: channels[0] comes first, and its pattern "
            '"/a/*" covers this one',
        ),
        (
            '[[filters]]\nchannel_prefix = "/a"\nallow = "now - mesage.at <= 20"',
            "3: filters[0].allow is no CEL expression: undeclared reference to 'mesage.at' "
            '(column 13); got "now - mesage.at <= 20"',
        ),
        (
            '[[filters]]\nchannel_prefix = "/a"\nallow = "now +"',
            "3: filters[0].allow is no CEL expression: Syntax error: mismatched input '<EOF>' "
            '(column 6); got "now +"',
        ),
        (
            '[[filters]]\nchannel_prefix = "/a"\nallow = "1 + 1"',
            '3: filters[0].allow must say true or false; this is of type int; got "1 + 1"',
        ),
        (
            '[[filters]]\nchannel_prefix = "/a"',
            "1: filters[0] needs exactly one of allow and callable",
        ),
        (
            '[[filters]]\nchannel_prefix = "/a"\nallow = "true"\ncallable = "a:b"',
            "1: filters[0] needs exactly one of allow and callable",
        ),
        (
            '[[channels]]\npattern = "/a"\nsubscribe = "nobody"',
            '3: channels[0].subscribe must be "public", "authenticated", "granted" or "none"; '
            'got "nobody"',
        ),
        (
            '[cors]\nallow_origins = "*"',
            "2: cors.allow_origins must be a list, each item an origin, such as "
            '"https://forum.example"; got "*"',
        ),
        (
            '[server]\ntrusted_proxies = [\n"unix",\n"10.0.0.1/8"]',
            "4: server.trusted_proxies[1] is an address inside a network; "
            'the network is written 10.0.0.0/8; got "10.0.0.1/8"',
        ),
        (
            '[poll]\nextra_response_headers = {Connection = "close"}',
            "2: poll.extra_response_headers cannot hold Connection, which the server decides",
        ),
        (
            "[poll]\nextra_response_headers = {X-A = 1}",
            "2: poll.extra_response_headers.X-A must be text in quotes; got 1",
        ),
        (
            "[poll]\nmax_data_size = 3",
            "2: poll.max_data_size is not known; did you mean backend.max_data_size?",
        ),
        ("[poll]\nquux = 3", "2: poll.quux is not known"),
        (
            "[backend]\nmax_data_size = 9\n[backend.memory]\nmax_bytes = 8",
            "4: backend.memory.max_bytes must be at least backend.max_data_size, 9",
        ),
        (
            '[server]\nlisten = "0.0.0.0:1"\n[api]\nenabled = true',
            "3: api.key is required, because the API listens on 0.0.0.0:1",
        ),
        (
            '[lookup]\nmode = "headers"',
            '2: lookup.mode is "headers", which needs server.trusted_proxies: '
            "nobody else is believed",
        ),
        (
            "[lookup.headers]\nuser = 'X'\nsite = 'x'",
            "1: lookup.headers needs three different headers for user, groups and site",
        ),
        (
            '[lookup]\nmode = "jwt"',
            "1: lookup.jwt needs one of secret, public_key, jwks_file and jwks_url, "
            'because lookup.mode is "jwt"',
        ),
        (
            '[lookup]\nmode = "jwt"\n[lookup.jwt]\njwks_file = "x"\njwks_url = "https://a/b"',
            "5: lookup.jwt.jwks_url cannot be given together with lookup.jwt.jwks_file",
        ),
        (
            '[lookup]\nmode = "jwt"\n[lookup.jwt]\nsecret = "' + "x" * 32 + '"\njwks_file = "x"',
            "5: lookup.jwt.jwks_file cannot be given together with lookup.jwt.secret",
        ),
        (
            '[lookup.jwt]\nsecret = "' + "x" * 31 + '"',
            "2: lookup.jwt.secret must have at least 32 characters",
        ),
        (
            '[lookup.jwt]\npublic_key = """\n-----BEGIN PRIVATE KEY-----\n"""',
            "2: lookup.jwt.public_key must be the public key, and this is a private one",
        ),
        (
            '[lookup.jwt]\ncookie = "a b"',
            '2: lookup.jwt.cookie is not a valid cookie name; got "a b"',
        ),
        (
            '[lookup.jwt]\nheader = "cookie"',
            "2: lookup.jwt.header cannot be Cookie; cookie names the cookie",
        ),
        (
            '[lookup.jwt]\nuser_claim = ""',
            '2: lookup.jwt.user_claim must not be empty; got ""',
        ),
        (
            '[[api.keys]]\nname = "a"\nsha256 = "' + "0" * 64 + '"\nscopes = []',
            "4: api.keys[0].scopes must not be an empty list",
        ),
        (
            '[[api.keys]]\nname = "a"\nscopes = ["read"]',
            "1: api.keys[0] needs exactly one of token, token_file and sha256",
        ),
        (
            '[[api.keys]]\nname = "a"\ntoken = "1"\nscopes = ["read"]\n'
            '[[api.keys]]\nname = "a"\ntoken = "2"\nscopes = ["read"]',
            "6: api.keys[1].name is used twice: a",
        ),
        (
            '[[api.keys]]\nname = "a"\ntoken = "1"\nscopes = ["read"]\nexpires = 2030-01-01',
            "5: api.keys[0].expires must be a date and time with its offset, "
            'such as 2030-01-01T00:00:00Z; got "2030-01-01"',
        ),
    ],
)
def test_problems_name_line_key_and_what_is_allowed(
    write_config: WriteConfig, text: str, sentence: str
) -> None:
    assert problem(write_config(text)) == f"bus.toml:{sentence}"


def test_a_problem_from_the_environment_names_the_variable(write_config: WriteConfig) -> None:
    path = write_config('[[api.keys]]\nname = "a"\ntoken = "1"\nscopes = ["read"]')
    assert problem(path, MESSAGEBUSD_API__KEYS='[{"name": "b", "scopes": ["read"]}]') == (
        "MESSAGEBUSD_API__KEYS: api.keys[0] needs exactly one of token, token_file and sha256"
    )


def test_a_problem_without_a_place_names_the_key() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(None, {}, {"server.listen": "0.0.0.0:1"})
    assert caught.value.problems == [
        "api.key is required, because the API listens on 0.0.0.0:1",
    ]


def test_an_option_is_named() -> None:
    with pytest.raises(ConfigurationError) as caught:
        load_settings(None, {}, {"backend.kind": "disk"})
    assert caught.value.problems == [
        '--backend: backend.kind must be "memory", "redis" or "postgres"; got "disk"'
    ]


def test_a_plain_value_in_place_of_a_section_survives_the_environment(
    write_config: WriteConfig,
) -> None:
    path = write_config("log = 3")
    assert problem(path, MESSAGEBUSD_LOG__LEVEL="info") == "bus.toml:1: log must be a table; got 3"


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("MESSAGEBUSD_POLL__MAX_BDY", "MESSAGEBUSD_POLL__MAX_BODY"),
        ("MESSAGEBUSD_POL__MAX_BODY", "MESSAGEBUSD_POLL__MAX_BODY"),
        ("MESSAGEBUSD_POLL_MAX_BODY", "MESSAGEBUSD_POLL__MAX_BODY"),
        ("MESSAGEBUSD_API_KEY", "MESSAGEBUSD_API__KEY"),
        ("MESSAGEBUSD_BACKEND__MAX_BYTES", "MESSAGEBUSD_BACKEND__MEMORY__MAX_BYTES"),
    ],
)
def test_unknown_variables_are_named_with_what_was_meant(name: str, hint: str) -> None:
    found = problem(None, **{name: "1"})
    assert found == f"{name}: is not a known setting; did you mean {hint}?"


# -- files that cannot be read


def test_wrong_syntax_has_its_line(write_config: WriteConfig) -> None:
    assert problem(write_config("[poll]\nmax_body = \n")) == "bus.toml:2: Invalid value"
    assert problem(write_config('[poll]\nmax_body = """\n')).startswith("bus.toml:2: ")
    assert problem(write_config("[poll]\n[poll]\n")).startswith("bus.toml:2: ")


def test_the_file_must_be_there_and_be_text(tmp_path: Path) -> None:
    missing = tmp_path / "missing.toml"
    assert problem(missing) == f"{missing}: cannot be read: No such file or directory"
    assert problem(tmp_path) == f"{tmp_path}: cannot be read: Is a directory"
    latin = tmp_path / "latin.toml"
    latin.write_bytes(b"# one\n# \xe9\n")
    assert problem(latin) == f"{latin}:2: is not UTF-8"


# -- secrets


@pytest.mark.parametrize("content", ["hush", "hush\n", "hush\r\n"])
def test_secrets_are_read_from_files(write_config: WriteConfig, content: str) -> None:
    Path("key").write_bytes(content.encode())
    path = write_config(
        '[api]\nkey_file = "key"\n[[api.keys]]\nname = "a"\ntoken_file = "other"\nscopes = ["read"]'
    )
    Path("other").write_text("other", encoding="utf-8")
    loaded = load(path)
    api = loaded.settings.api
    assert api.key is not None
    assert api.key.get_secret_value() == "hush"
    assert api.keys[0].token is not None
    assert api.keys[0].token.get_secret_value() == "other"
    assert loaded.sources["api.key"] == "bus.toml:2"
    assert "hush" not in repr(loaded)


def test_a_secret_file_from_the_environment(tmp_path: Path) -> None:
    (tmp_path / "key").write_text("hush", encoding="utf-8")
    loaded = load(MESSAGEBUSD_API__KEY_FILE=str(tmp_path / "key"))
    assert loaded.settings.api.has_key
    assert loaded.sources["api.key"] == "MESSAGEBUSD_API__KEY_FILE"


def test_a_secret_is_given_once(write_config: WriteConfig) -> None:
    path = write_config('[api]\nkey = "hush"\nkey_file = "key"')
    assert problem(path) == "bus.toml:3: api.key_file cannot be given together with api.key"
    path = write_config('[api]\nkey_file = "key"')
    assert problem(path, MESSAGEBUSD_API__KEY="hush") == (
        "bus.toml:2: api.key_file cannot be given together with api.key"
    )


def test_secret_files_that_cannot_be_used(write_config: WriteConfig) -> None:
    path = write_config('[api]\nkey_file = "key"')
    assert (
        problem(path) == "bus.toml:2: api.key_file cannot be read: key: No such file or directory"
    )
    Path("key").mkdir()
    assert problem(path) == "bus.toml:2: api.key_file cannot be read: key: Is a directory"
    Path("key").rmdir()
    Path("key").write_bytes(b"\xff")
    assert problem(path) == "bus.toml:2: api.key_file cannot be read: key: it is not UTF-8"
    for unusable in (b"", b"\n", b"two words\n", b"two\nlines\n"):
        Path("key").write_bytes(unusable)
        assert problem(path) == (
            "bus.toml:2: api.key must be printable ASCII without spaces, and not empty"
        )


@pytest.mark.parametrize(
    "text",
    [
        'api = "hush"',
        '[api]\nkey = "hush hush"',
        '[api]\nkeys = "hush"',
        '[api]\nkeys = ["hush"]',
        '[api]\nkye = "hush"',
        '[[api.keys]]\nname = "a"\nsha256 = "hush"\nscopes = ["read"]',
        '[[api.keys]]\nname = "a"\ntoken = ["hush"]\nscopes = ["read"]',
        '[[api.keys]]\nname = "a"\ntoken = "hush"\nsha256 = "hush"\nscopes = ["read"]',
        '[[api.keys]]\nname = "a"\npassword = "hush"\nscopes = ["read"]',
        '[api]\nkey = "hush',
        "[api]\nkey = hush",
        '[api]\nkey = "hush"\nkey = "hush"',
    ],
)
def test_problems_do_not_show_secrets(write_config: WriteConfig, text: str) -> None:
    path = write_config(text)
    assert "hush" not in "".join(problems(path))


def test_problems_in_variables_do_not_show_secrets() -> None:
    for text in ('"hush"', "hush", '[{"name": "a", "token": "hush hush"}]', '["hush"]'):
        found = problems(None, {"MESSAGEBUSD_API__KEYS": text, "MESSAGEBUSD_API__KYE": "hush"})
        assert "hush" not in "".join(found)


# -- tokens


def test_a_file_of_a_key_is_one_key(write_config: WriteConfig) -> None:
    Path("secret").write_text("x" * 32 + "\n")
    Path("pem").write_text("-----BEGIN PUBLIC KEY-----")
    jwt = '[lookup]\nmode = "jwt"\n[lookup.jwt]\nsecret_file = "secret"'
    assert load(write_config(jwt)).settings.lookup.jwt.key_names == ["secret_file"]
    assert problem(write_config(f'{jwt}\npublic_key_file = "pem"')) == (
        "bus.toml:5: lookup.jwt.public_key_file cannot be given together with "
        "lookup.jwt.secret_file"
    )
    Path("secret").write_text("short")
    assert problem(write_config(jwt)) == (
        "bus.toml:4: lookup.jwt.secret must have at least 32 characters"
    )


@pytest.mark.parametrize(
    ("url", "is_doubted"),
    [
        ("https://forum.example/jwks", False),
        ("http://127.0.0.1/jwks", False),
        ("http://[::1]:80/jwks", False),
        ("http://localhost/jwks", False),
        ("http://forum.example/jwks", True),
        ("http://10.0.0.1/jwks", True),
    ],
)
def test_keys_from_an_open_line_are_doubted(
    write_config: WriteConfig, url: str, is_doubted: bool
) -> None:
    text = f'[lookup]\nmode = "jwt"\n[lookup.jwt]\njwks_url = "{url}"'
    warnings = load(write_config(text)).warnings
    assert any("bus.toml:4: lookup.jwt.jwks_url" in each for each in warnings) is is_doubted


@pytest.mark.parametrize(
    ("more", "is_doubted"),
    [
        ("", False),
        ('allow_headers = ["content-type", "authorization"]', False),
        ('allow_headers = ["content-type"]', True),
    ],
)
def test_a_header_that_pages_may_not_send_is_doubted(
    write_config: WriteConfig, more: str, is_doubted: bool
) -> None:
    path = write_config(
        '[lookup]\nmode = "jwt"\njwt.jwks_url = "https://a/b"\n'
        f'[cors]\nallow_origins = ["https://a"]\n{more}'
    )
    sentence = "cors.allow_headers has no Authorization"
    assert any(sentence in each for each in load(path).warnings) is is_doubted
    assert load(path, MESSAGEBUSD_LOOKUP__JWT__COOKIE="t").warnings == ()
