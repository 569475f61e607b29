"""Keys in files and in the settings: read again when they change."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from messagebusd.errors import ConfigurationError
from messagebusd.identity.jwks import FILE_CHECK_SECONDS, MAX_SET_BYTES, FileKeys, open_keys
from messagebusd.identity.jwt_keys import public_key, read_key_set, secret_key
from messagebusd.settings import LookupJwt
from tests.support.clock import FakeClock
from tests.support.tokens import SECRET, jwk, jwks, private_pem, public_pem, secret_jwk


def write(path: Path, content: bytes, at: float) -> None:
    path.write_bytes(content)
    os.utime(path, (at, at))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "jwks.json"
    write(path, jwks(jwk("RS256", kid="a")), 1)
    return path


async def test_a_file_is_read_again_when_it_changes(path: Path) -> None:
    clock, reads = FakeClock(), []

    def read(content: bytes) -> Any:
        reads.append(content)
        return read_key_set(content, allow_secrets=True)

    keys = FileKeys(path, read, clock)
    write(path, jwks(jwk("RS256", kid="b")), 2)
    assert await keys.find("a")  # it was looked at a moment ago
    clock.advance(FILE_CHECK_SECONDS)
    assert await keys.find("a") is None
    assert await keys.find("b")
    clock.advance(FILE_CHECK_SECONDS)
    assert await keys.find("b")
    assert len(reads) == 2


async def test_what_replaces_a_file_is_seen_with_the_same_time_and_size(path: Path) -> None:
    clock = FakeClock()
    keys = FileKeys(path, lambda content: read_key_set(content, allow_secrets=True), clock)
    other = path.with_name("other")
    write(other, jwks(jwk("RS256", kid="b")), 1)
    os.replace(other, path)
    clock.advance(FILE_CHECK_SECONDS)
    assert await keys.find("b")


@pytest.mark.parametrize(
    "broken", [b"", b"{", jwks(), jwks(jwk("weak", kid="b")), b" " * (MAX_SET_BYTES + 1), None]
)
async def test_what_cannot_be_used_changes_nothing(
    path: Path, broken: bytes | None, caplog: pytest.LogCaptureFixture
) -> None:
    clock = FakeClock()
    keys = FileKeys(path, lambda content: read_key_set(content, allow_secrets=True), clock)
    if broken is None:
        os.remove(path)
    else:
        write(path, broken, 2)
    for _ in range(3):
        clock.advance(FILE_CHECK_SECONDS)
        assert await keys.find("a")
    assert [each.message for each in caplog.records] == ["the token keys cannot be read again"]
    write(path, jwks(jwk("RS256", kid="b")), 3)
    clock.advance(FILE_CHECK_SECONDS)
    assert await keys.find("a") is None
    assert await keys.find("b")


async def test_the_settings_say_which(tmp_path: Path, path: Path) -> None:
    (tmp_path / "pem").write_bytes(public_pem("ES256"))
    (tmp_path / "secret").write_bytes(SECRET.encode() + b"\r\n")
    secret, pem = secret_key(SECRET.encode()), public_pem("ES256").decode()
    for settings, key in (
        (LookupJwt(secret=SecretStr(SECRET)), secret),
        (LookupJwt(secret=SecretStr(SECRET), secret_file=tmp_path / "secret"), secret),
        (LookupJwt(public_key=pem), public_key(pem.encode())),
        (LookupJwt(public_key=pem, public_key_file=tmp_path / "pem"), public_key(pem.encode())),
        (LookupJwt(jwks_file=path), public_key(public_pem("RS256"))),
    ):
        keys = open_keys(settings)
        await keys.open()
        assert await keys.find("a") == key
        await keys.close()
    write(path, jwks(secret_jwk(kid="s")), 2)
    assert await open_keys(LookupJwt(jwks_file=path)).find("s") == secret


def test_keys_that_cannot_be_used_are_named(tmp_path: Path) -> None:
    private = tmp_path / "private.pem"
    private.write_bytes(private_pem("RS256"))
    missing = tmp_path / "missing"
    for settings, problem in (
        (
            LookupJwt(jwks_file=missing),
            f"lookup.jwt.jwks_file cannot be used: {missing}: No such file or directory",
        ),
        (
            LookupJwt(jwks_file=private),
            f"lookup.jwt.jwks_file cannot be used: {private}: it is not JSON: "
            "Expecting value at character 0",
        ),
        (
            LookupJwt(public_key="x", public_key_file=private),
            f"lookup.jwt.public_key_file cannot be used: {private}: it is a private key; "
            "only the public one belongs here",
        ),
        (
            LookupJwt(public_key="x"),
            "lookup.jwt.public_key cannot be used: it is no public key in PEM "
            "(-----BEGIN PUBLIC KEY-----)",
        ),
    ):
        with pytest.raises(ConfigurationError) as caught:
            open_keys(settings)
        assert caught.value.problems == [problem]
