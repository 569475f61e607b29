"""The sample files and the documentation agree with the settings."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from messagebusd.errors import ConfigurationError
from messagebusd.settings import Settings, load_settings
from messagebusd.settings.keys import KEYS, allowed, is_hidden
from messagebusd.settings.reference import effective_lines, markdown, sample

ROOT = Path(__file__).parents[2]
REMAKE = "python -m messagebusd.settings.reference"


def test_the_sample_is_up_to_date() -> None:
    assert (ROOT / "config/bus.toml").read_text() == sample(), f"{REMAKE} sample > config/bus.toml"


def test_the_documentation_is_up_to_date() -> None:
    assert (ROOT / "docs/configuration.md").read_text() == markdown(), (
        f"{REMAKE} markdown > docs/configuration.md"
    )


def keys_in(tree: Mapping[str, Any], *path: str) -> set[str]:
    """Dotted names of the settings in a tree."""
    found = set()
    for name, value in tree.items():
        dotted = ".".join((*path, name))
        if dotted in KEYS:
            found.add(dotted)
        else:
            found |= keys_in(value, *path, name)
    return found


def test_the_sample_changes_nothing() -> None:
    assert load_settings(ROOT / "config/bus.toml", {}, {}).settings == Settings()


def test_the_sample_without_comment_signs_has_every_default(tmp_path: Path) -> None:
    path = tmp_path / "bus.toml"
    path.write_text(re.sub(r"^#(?! |$)", "", sample(), flags=re.MULTILINE))
    assert load_settings(path, {}, {}).settings == Settings()
    present = keys_in(tomllib.loads(path.read_text()))
    defaults = {name for name, key in KEYS.items() if key.field.default not in (None, ())}
    assert defaults <= present


def test_the_examples_in_the_sample_are_valid(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "api.key").write_text("one")
    (tmp_path / "forum.key").write_text("two")
    (tmp_path / "webhook.secret").write_text("three")
    (tmp_path / "redis").write_text("four")
    (tmp_path / "sentinel").write_text("six")
    (tmp_path / "postgres").write_text("five")
    (tmp_path / "inbox.secret").write_text("seven")
    (tmp_path / "jwt.secret").write_text("eight" * 8)
    (tmp_path / "jwt.pem").write_text("nine")
    text = re.sub(r"^# ?(?=\[\[|\w+ = |\"|\])", "", sample(), flags=re.MULTILINE)
    path = tmp_path / "bus.toml"
    path.write_text(text.replace("/etc/messagebusd", str(tmp_path)))
    loaded = load_settings(path, {}, {})
    assert loaded.settings.channels
    assert loaded.settings.filters
    assert loaded.settings.api.keys[0].expires
    # Only what would be a secret in plain text has no example.
    assert {name for name in KEYS if loaded.sources[name] == "default"} == set()
    assert keys_in(tomllib.loads(path.read_text())) == set(KEYS) - {
        "api.key",
        "backend.postgres.password",
        "backend.redis.password",
        "backend.redis.sentinel_password",
        "ingest.redis.password",
        "ingest.redis.secret",
        "ingest.redis.sentinel_password",
        "lookup.jwt.public_key",
        "lookup.jwt.secret",
        "lookup.webhook.secret",
    }


def test_every_key_is_documented() -> None:
    page = markdown()
    for name, key in KEYS.items():
        if name not in ("api.keys", "channels", "filters"):
            assert key.field.description, name
            assert f"| `{key.path[-1]}` |" in page
        assert allowed(key.annotation)
    assert "## `[[channels]]`" in page
    assert "## `[[filters]]`" in page
    assert "## `[[api.keys]]`" in page


def test_secrets_are_known() -> None:
    assert {name for name, key in KEYS.items() if is_hidden(key.annotation)} == {
        "lookup.webhook.url",
        "lookup.jwt.jwks_url",
        "api.key",
        "api.keys",
        "backend.postgres.listen_url",
        "backend.postgres.password",
        "backend.postgres.url",
        "backend.redis.password",
        "backend.redis.sentinel_password",
        "backend.redis.url",
        "ingest.redis.password",
        "ingest.redis.secret",
        "ingest.redis.sentinel_password",
        "ingest.redis.url",
        "lookup.jwt.public_key",
        "lookup.jwt.secret",
        "lookup.webhook.secret",
    }


def test_production_settings_lack_only_the_secrets(tmp_path: Path) -> None:
    production = ROOT / "config/production.toml"
    with pytest.raises(ConfigurationError) as caught:
        load_settings(production, {}, {})
    assert all("token_file cannot be read" in problem for problem in caught.value.problems)

    path = tmp_path / "production.toml"
    path.write_text(production.read_text().replace("/etc/messagebusd", str(tmp_path)))
    (tmp_path / "keys").mkdir()
    for name in ("forum", "operator"):
        (tmp_path / "keys" / name).write_text(f"key-of-{name}\n")
    loaded = load_settings(path, {}, {})
    assert loaded.warnings == ()
    assert loaded.settings.server.internal_listen is not None
    assert loaded.settings.api_listen.is_local


def test_effective_values_are_aligned_and_hide_secrets(tmp_path: Path) -> None:
    path = tmp_path / "bus.toml"
    path.write_text(
        '[api]\nkey = "hush-1"\n'
        '[[api.keys]]\nname = "a"\ntoken = "hush-2"\nscopes = ["read"]\n'
        f'[[api.keys]]\nname = "b"\nsha256 = "{"ab" * 32}"\nscopes = ["read"]\n'
        "expires = 2030-01-01T00:00:00Z\n"
    )
    environ = {
        "MESSAGEBUSD_POLL__EXTRA_RESPONSE_HEADERS": '{"X-A": "say \\"a\\""}',
        "MESSAGEBUSD_SERVER__TRUSTED_PROXIES": '["10.0.0.0/8", "unix"]',
        "MESSAGEBUSD_BACKEND__MEMORY__SNAPSHOT_FILE": "/tmp/snapshot",
    }
    lines = list(effective_lines(load_settings(path, environ, {})))
    text = "\n".join(lines)
    assert "hush" not in text
    assert "abab" not in text
    assert len({line.index(" = ") for line in lines}) == 1
    assert len(lines) == len(KEYS)
    shown = dict(re.split(r" += ", line, maxsplit=1) for line in lines)
    assert re.fullmatch(rf'"\*{{8}}" +# {path}:2', shown["api.key"])
    assert shown["api.keys"] == (
        '[{name = "a", token = "********", scopes = ["read"]}, '
        '{name = "b", sha256 = "********", scopes = ["read"], expires = 2030-01-01T00:00:00Z}]'
        f"   # {path}:3"
    )
    assert shown["poll.extra_response_headers"].startswith('{"X-A" = "say \\"a\\""}')
    assert shown["server.trusted_proxies"].startswith('["10.0.0.0/8", "unix"]')
    assert shown["server.internal_listen"].split() == ["(unset)", "#", "default"]
    assert shown["backend.memory.snapshot_file"].startswith('"/tmp/snapshot"')
