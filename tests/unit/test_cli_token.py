"""``messagebusd token`` and what ``check-config`` says of keys."""

from __future__ import annotations

import asyncio
import base64
import json
import time
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from messagebusd.cli import main
from messagebusd.identity.base import Identity
from messagebusd.identity.jwt import JwtLookup
from messagebusd.settings import load_settings
from tests.support.tokens import SECRET, jwk, jwks, private_pem, public_pem, secret_jwk


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.delenv("MESSAGEBUSD_CONFIG", raising=False)
    monkeypatch.chdir(tmp_path)
    Path("secret").write_text(f"{SECRET}\n")
    for kind in ("RS256", "ES256", "EdDSA", "weak"):
        Path(f"{kind}.pem").write_bytes(public_pem(kind))
        Path(f"{kind}.key").write_bytes(private_pem(kind))

    def write(jwt: str, lookup: str = "") -> None:
        Path("bus.toml").write_text(f'[lookup]\nmode = "jwt"\n{lookup}\n[lookup.jwt]\n{jwt}\n')

    return write


def run(command: str, *arguments: str) -> Result:
    result = CliRunner().invoke(main, [command, "--config", "bus.toml", *arguments])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert SECRET not in result.output
    return result


def token(*arguments: str) -> str:
    """The token that is printed, and nothing with it."""
    result = run("token", *arguments)
    assert (result.exit_code, result.stderr) == (0, "")
    assert result.stdout.count("\n") == 1
    return result.stdout.strip()


def fails(*arguments: str) -> str:
    result = run("token", *arguments)
    assert (result.exit_code, result.stdout) == (1, "")
    return result.stderr.strip()


def claims(found: str) -> dict[str, Any]:
    part = found.split(".")[1]
    decoded: dict[str, Any] = json.loads(base64.urlsafe_b64decode(part + "=" * (-len(part) % 4)))
    return decoded


def identity(found: str) -> Identity:
    settings = load_settings(Path("bus.toml"), {}, {}).settings.lookup
    return asyncio.run(JwtLookup.from_settings(settings).verify(found))


def test_what_the_daemon_takes(write: Any) -> None:
    write('secret_file = "secret"')
    who = ["--user", "42", "--group", "1", "--group", "staff", "--site", "forum"]
    found = token(*who, "--channel", "/chat/*", "--ttl", "1h")
    assert claims(found) == {
        "sub": 42,
        "groups": [1, "staff"],
        "site": "forum",
        "channels": ["/chat/*"],
        "iat": pytest.approx(time.time(), abs=5),
        "exp": pytest.approx(time.time() + 3600, abs=5),
    }
    taken = identity(found)
    assert (taken.user_id, taken.group_ids, taken.site_id) == (42, {1, "staff"}, "forum")


def test_names_and_origin_are_those_of_the_settings(write: Any) -> None:
    write(
        'secret_file = "secret"\nissuer = "app"\naudience = "bus"\n'
        'user_claim = "realm.user"\ngroups_claim = "g"\nsite_claim = "s"\nchannels_claim = "c"',
        'id_type = "string"',
    )
    found = token("--user", "42", "--group", "1", "--site", "s", "--channel", "/a")
    assert {"iss", "aud", "realm.user", "g", "s", "c"} < set(claims(found))
    assert (identity(found)).user_id == "42"


@pytest.mark.parametrize("kind", ["RS256", "ES256", "EdDSA"])
def test_a_private_key(write: Any, kind: str) -> None:
    write(f'public_key_file = "{kind}.pem"')
    assert (identity(token("--user", "ada", "--key-file", f"{kind}.key"))).user_id == "ada"


def test_a_key_of_a_set(write: Any) -> None:
    Path("jwks.json").write_bytes(jwks(jwk("RS256", kid="r"), secret_jwk(kid="s")))
    write('jwks_file = "jwks.json"')
    assert identity(token("--kid", "r", "--key-file", "RS256.key"))
    assert identity(token("--kid", "s"))
    assert fails("--key-file", "RS256.key") == (
        "the daemon would refuse it: the token names no key (kid)"
    )
    assert "there is no secret" in fails("--kid", "r")


def test_a_set_elsewhere_is_not_asked(write: Any) -> None:
    write('jwks_url = "http://127.0.0.1:1/jwks"')
    assert claims(token("--user", "42", "--key-file", "RS256.key", "--kid", "r"))["sub"] == 42


@pytest.mark.parametrize(
    ("ttl", "seconds"), [("1", 1), ("90s", 90), ("15m", 900), ("1h", 3600), ("7d", 604_800)]
)
def test_how_long(write: Any, ttl: str, seconds: int) -> None:
    write('secret_file = "secret"')
    found = claims(token("--ttl", ttl))
    assert found["exp"] - found["iat"] == seconds
    assert "sub" not in found


@pytest.mark.parametrize("ttl", ["0", "-1", "1.5h", "1w", "", "h", "1h30m", "9" * 12])
def test_what_is_no_time(write: Any, ttl: str) -> None:
    write('secret_file = "secret"')
    result = run("token", "--ttl", ttl)
    assert (result.exit_code, result.stdout) == (2, "")
    assert "must be a number of seconds" in result.stderr


def test_what_cannot_be_made_is_said(write: Any) -> None:
    write('secret_file = "secret"')
    for arguments, problem in (
        (["--user", "-1"], "user -1 is nobody"),
        (["--site", "a|b"], "a site_id must not"),
        (["--user", ""], "sub has something that is no text, or empty"),
        (["--key-file", "RS256.key"], "the token's signature is not valid"),
    ):
        assert problem in fails(*arguments)
    assert fails("--key-file", "missing") == (
        "--key-file cannot be used: missing: No such file or directory"
    )
    assert "PRIVATE KEY" in fails("--key-file", "RS256.pem")
    assert "2048" in fails("--key-file", "weak.key")
    write('public_key_file = "RS256.pem"')
    assert fails() == (
        "there is no secret to sign with: set lookup.jwt.secret_file, "
        "or give --key-file (and --kid)"
    )


def test_a_daemon_that_reads_no_tokens_is_warned_of(write: Any) -> None:
    Path("bus.toml").write_text('[lookup.jwt]\nsecret_file = "secret"\n')
    result = run("token", "--user", "42")
    assert result.exit_code == 0
    assert result.stderr == 'warning: lookup.mode is "none", which reads no tokens\n'
    assert claims(result.stdout)["sub"] == 42


def test_without_a_file_the_warning_names_the_option(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MESSAGEBUSD_CONFIG", raising=False)
    result = CliRunner().invoke(main, ["token", "--user", "42"])
    assert result.exit_code == 1
    assert "(no file was read: --config names one)" in result.stderr


def test_check_config_looks_at_keys(write: Any) -> None:
    write('secret_file = "secret"')
    assert run("check-config").output == "ok bus.toml\n"
    write('public_key_file = "weak.pem"')
    result = run("check-config")
    assert (result.exit_code, result.output) == (
        1,
        "lookup.jwt.public_key_file cannot be used: weak.pem: an RSA key has 2048 to 8192 bits, "
        "this one has 1024\n",
    )
    write('jwks_url = "http://127.0.0.1:1/jwks"')
    assert run("check-config").output == "ok bus.toml\n"
