"""Keys of tokens: which are taken, for what, and which are not."""

from __future__ import annotations

import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import (
    BestAvailableEncryption,
    Encoding,
    PrivateFormat,
)

from messagebusd.identity import jwt_keys
from messagebusd.identity.jwt_keys import (
    MAX_KEYS,
    UnusableKey,
    one_key,
    private_key,
    public_key,
    read_json,
    read_key_set,
    secret_key,
)
from tests.support import tokens
from tests.support.tokens import SECRET, jwk, jwks, private_pem, public_pem, secret_jwk

ASYMMETRIC = ("RS256", "ES256", "EdDSA")


def read(*entries: Any, allow_secrets: bool = False) -> jwt_keys.KeySet:
    return read_key_set(jwks(*entries), allow_secrets=allow_secrets)


def test_a_key_is_for_one_algorithm() -> None:
    assert secret_key(SECRET.encode()).algorithm == "HS256"
    for kind in ASYMMETRIC:
        assert public_key(public_pem(kind)).algorithm == kind
        assert private_key(private_pem(kind))[0] == kind
        assert read(jwk(kind)).only == public_key(public_pem(kind))


def test_keys_are_compared_and_shown_without_what_they_are() -> None:
    key = secret_key(SECRET.encode())
    assert key == secret_key(SECRET.encode())
    assert key != secret_key(SECRET.encode() + b"!")
    assert SECRET not in repr(key)
    assert public_key(public_pem("RS256")) != public_key(public_pem("RS256-2"))


@pytest.mark.parametrize(
    "secret",
    [
        b"",
        b"x" * 31,
        public_pem("RS256"),
        private_pem("ES256"),
        json.dumps(jwk("RS256")).encode(),
        b"ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIBhVBYWMbBYWMbBYWMbBYWMbBYWMbBYWMbBYWMbBYWM a@b",
    ],
    ids=["empty", "short", "public pem", "private pem", "jwk", "ssh"],
)
def test_what_is_no_secret(secret: bytes) -> None:
    with pytest.raises(UnusableKey):
        secret_key(secret)
    assert secret_key(b"x" * 32)


@pytest.mark.parametrize(
    ("pem", "reason"),
    [
        (private_pem("RS256"), "private"),
        (public_pem("weak"), "2048"),
        (public_pem("P384"), "neither"),
        (public_pem("Ed448"), "neither"),
        (b"", "PEM"),
        (SECRET.encode(), "PEM"),
        (public_pem("RS256")[:-40], "PEM"),
        (b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n", "PEM"),
        (b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", "PEM"),
    ],
)
def test_what_is_no_public_key(pem: bytes, reason: str) -> None:
    with pytest.raises(UnusableKey, match=reason):
        public_key(pem)


def test_what_is_no_private_key() -> None:
    encrypted = tokens.private_key("ES256").private_bytes(
        Encoding.PEM, PrivateFormat.PKCS8, BestAvailableEncryption(b"p")
    )
    for pem, reason in (
        (encrypted, "encrypted"),
        (public_pem("RS256"), "PEM"),
        (private_pem("weak"), "2048"),
        (private_pem("P384"), "neither"),
        (private_pem("Ed448"), "neither"),
        (b"", "PEM"),
    ):
        with pytest.raises(UnusableKey, match=reason):
            private_key(pem)


def test_one_key_is_for_every_name() -> None:
    key = secret_key(SECRET.encode())
    assert one_key(key).find(None) == one_key(key).find("k") == key


# -- sets


def test_a_set_is_found_by_kid() -> None:
    found = read(jwk("RS256", kid="r"), jwk("ES256", kid="e"), jwk("EdDSA"))
    assert [getattr(found.find(kid), "algorithm", None) for kid in ("r", "e", "x", "", None)] == [
        "RS256",
        "ES256",
        None,
        None,
        None,
    ]


def test_the_only_key_needs_no_name() -> None:
    found = read(jwk("RS256", kid="r"), jwk("P384", kid="p"))
    assert found.find(None) == found.find("r") == public_key(public_pem("RS256"))
    assert found.find("p") is None


UNUSABLE = {
    "for encryption": jwk("RS256", kid="x", use="enc"),
    "use of another type": jwk("RS256", kid="x", use=["sig"]),
    "no verifying": jwk("RS256", kid="x", key_ops=["encrypt"]),
    "operations of another type": jwk("RS256", kid="x", key_ops="verify"),
    "RS512": jwk("RS256", kid="x", alg="RS512"),
    "PS256": jwk("RS256", kid="x", alg="PS256"),
    "RSA for HS256": jwk("RS256", kid="x", alg="HS256"),
    "RSA for none": jwk("RS256", kid="x", alg="none"),
    "alg of another type": jwk("RS256", kid="x", alg=["RS256"]),
    "EC for RS256": jwk("ES256", kid="x", alg="RS256"),
    "weak": jwk("weak", kid="x"),
    "P-384": jwk("P384", kid="x"),
    "Ed448": jwk("Ed448", kid="x"),
    "private RSA": jwk("RS256", private=True, kid="x"),
    "private EC": jwk("ES256", private=True, kid="x"),
    "private Ed25519": jwk("EdDSA", private=True, kid="x"),
    "unknown kty": {"kty": "AKP", "kid": "x"},
    "no kty": {"kid": "x"},
    "kty of another type": {"kty": ["RSA"], "kid": "x"},
    "RSA on a curve": jwk("RS256", kid="x", crv="P-256"),
    "no numbers": {"kty": "RSA", "kid": "x"},
    "numbers of another type": {"kty": "RSA", "kid": "x", "n": 5, "e": 3},
    "no base64": {"kty": "RSA", "kid": "x", "n": "!", "e": "AQAB"},
    "even exponent": jwk("RS256", kid="x", e="AA"),
    "not on the curve": jwk("ES256", kid="x", x="A" * 43),
    "short Ed25519": jwk("EdDSA", kid="x", x="AAAA"),
    "null number": jwk("ES256", kid="x") | {"x": None},
    "kid of another type": jwk("RS256", kid=5),
    "empty kid": jwk("RS256", kid=""),
    "long kid": jwk("RS256", kid="k" * 257),
    "no object": "key",
    "secret": secret_jwk(kid="x"),
}


@pytest.mark.parametrize("entry", UNUSABLE.values(), ids=UNUSABLE)
def test_keys_that_are_left_out(entry: Any) -> None:
    found = read(entry, jwk("ES256-2", kid="good"))
    assert found.find("x") is None
    assert set(found.by_id) == {"good"}
    assert len(found.skipped) == 1
    with pytest.raises(UnusableKey, match="none of its keys can be used: key 1: "):
        read(entry)


def test_what_says_no_more_than_it_must() -> None:
    entry = jwk("RS256", kid="x", use="sig", key_ops=["verify"], alg="RS256", x5u="http://x", z=1)
    assert read(entry).find("x") is not None


def test_secrets_only_in_files_of_ones_own() -> None:
    found = read(secret_jwk(kid="s", alg="HS256"), jwk("RS256", kid="r"), allow_secrets=True)
    assert found.find("s") == secret_key(SECRET.encode())
    for wrong in (
        secret_jwk("short", kid="s"),
        secret_jwk(kid="s", alg="RS256"),
        secret_jwk(kid="s", k=5),
        secret_jwk(kid="s", k="a"),
        secret_jwk(kid="s", use="enc"),
    ):
        assert read(wrong, jwk("RS256", kid="r"), allow_secrets=True).find("s") is None


def test_two_keys_of_one_name() -> None:
    for other in (jwk("RS256-2", kid="k"), jwk("ES256", kid="k"), jwk("RS256", kid="k")):
        with pytest.raises(UnusableKey, match="two of its keys"):
            read(jwk("RS256", kid="k"), other)
    # A key for something else may have the same name.
    assert read(jwk("RS256", kid="k", use="enc"), jwk("RS256", kid="k")).find("k") is not None


@pytest.mark.parametrize(
    "document",
    [
        b"",
        b"{",
        b"[]",
        b"{}",
        b'{"keys":{}}',
        b'{"keys":null}',
        b'{"keys":[]}',
        b'{"keys":[],"keys":[]}',
        b'{"keys":[NaN]}',
        b"\xff",
        b"[" * 100_000,
        json.dumps(jwk("RS256")).encode(),
        jwks(*[{"kty": "RSA"}] * (MAX_KEYS + 1)),
    ],
)
def test_what_is_no_set(document: bytes) -> None:
    with pytest.raises(UnusableKey):
        read_key_set(document, allow_secrets=True)


def test_reasons_show_no_secret() -> None:
    broken = jwks(secret_jwk("hush")).replace(b'"kty"', b'"kty" hush')
    for document in (broken, jwks(secret_jwk("hush")), b'{"keys": hush}'):
        with pytest.raises(UnusableKey) as caught:
            read_key_set(document, allow_secrets=True)
        assert "hush" not in str(caught.value)
        assert tokens.part(b"hush") not in str(caught.value)


def test_json_has_one_meaning() -> None:
    assert read_json(b'{"a":{"b":1},"b":[1.5,null]}') == {"a": {"b": 1}, "b": [1.5, None]}
    for text in (b'{"a":1,"a":1}', b'[{"a":1,"\\u0061":2}]', b"Infinity", b"-Infinity", b"nul"):
        with pytest.raises(ValueError, match=r"."):
            read_json(text)
