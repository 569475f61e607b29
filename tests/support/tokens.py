"""Keys and tokens: real ones, and such as an attacker would make."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
from collections.abc import Mapping
from functools import cache
from typing import Any

from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm
from jwt.api_jws import PyJWS

SECRET = "correct-horse-battery-staple-42-x"
ALGORITHMS = ("HS256", "RS256", "ES256", "EdDSA")


@cache
def private_key(kind: str) -> Any:
    """A private key, made once: an algorithm, with a number after it if there are several, or a
    kind that nothing accepts."""
    match kind.split("-")[0]:
        case "RS256":
            return rsa.generate_private_key(65537, 2048)
        case "ES256":
            return ec.generate_private_key(ec.SECP256R1())
        case "EdDSA":
            return ed25519.Ed25519PrivateKey.generate()
        case "weak":
            return rsa.generate_private_key(65537, 1024)
        case "P384":
            return ec.generate_private_key(ec.SECP384R1())
        case "Ed448":
            return ed448.Ed448PrivateKey.generate()
    raise KeyError(kind)


def public_pem(kind: str) -> bytes:
    key = private_key(kind).public_key()
    return key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def private_pem(kind: str) -> bytes:
    return private_key(kind).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())


def jwk(kind: str, *, private: bool = False, **members: Any) -> dict[str, Any]:
    """The public key as a JWK; members that are None are left out."""
    key = private_key(kind) if private else private_key(kind).public_key()
    if isinstance(key, rsa.RSAPublicKey | rsa.RSAPrivateKey):
        entry = RSAAlgorithm.to_jwk(key, as_dict=True)
    elif isinstance(key, ec.EllipticCurvePublicKey | ec.EllipticCurvePrivateKey):
        entry = ECAlgorithm.to_jwk(key, as_dict=True)
    else:
        entry = OKPAlgorithm.to_jwk(key, as_dict=True)
    entry.pop("key_ops", None)
    entry.update(members)
    return {name: value for name, value in entry.items() if value is not None}


def secret_jwk(secret: str = SECRET, **members: Any) -> dict[str, Any]:
    return {"kty": "oct", "k": part(secret.encode()), **members}


def jwks(*entries: Mapping[str, Any]) -> bytes:
    return json.dumps({"keys": entries}).encode()


def sign(claims: Any, kind: str = "HS256", *, secret: str = SECRET, **header: Any) -> str:
    """A token with these claims; text and bytes are the payload as they are."""
    key = secret if kind == "HS256" else private_key(kind)
    return PyJWS().encode(payload_of(claims), key, kind.split("-")[0], header or None)


def forge(claims: Any, header: Any, key: bytes | None = None) -> str:
    """A token with any header, signed with HMAC or not at all."""
    signed = f"{part(payload_of(header))}.{part(payload_of(claims))}"
    signature = b"" if key is None else hmac.new(key, signed.encode(), hashlib.sha256).digest()
    return f"{signed}.{part(signature)}"


def payload_of(claims: Any) -> bytes:
    if isinstance(claims, bytes):
        return claims
    return claims.encode() if isinstance(claims, str) else json.dumps(claims).encode()


def part(content: bytes) -> str:
    """One part of a token."""
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()
