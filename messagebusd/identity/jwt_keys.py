"""Keys of signed tokens: which there are, and the one algorithm that each of them is for.

A key's own kind decides how a token is verified, and nothing that a token says about itself: a
secret is for HS256, an RSA key for RS256, a P-256 key for ES256, an Ed25519 key for EdDSA. There is
nothing else, so that a public key cannot be taken for a secret, nor a signature be left out
(RFC 8725, 2.1 and 3.1). Values and functions only; `jwks.py` knows where keys come from.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, NoReturn

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import (
    SECP256R1,
    EllipticCurvePrivateKey,
    EllipticCurvePublicKey,
)
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPrivateKey, RSAPublicKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_private_key,
    load_pem_public_key,
)
from jwt import PyJWK
from jwt.algorithms import HMACAlgorithm
from jwt.api_jws import PyJWS
from jwt.exceptions import InvalidKeyError, PyJWTError
from jwt.utils import base64url_decode

Algorithm = Literal["HS256", "RS256", "ES256", "EdDSA"]
PublicKey = RSAPublicKey | EllipticCurvePublicKey | Ed25519PublicKey
PrivateKey = RSAPrivateKey | EllipticCurvePrivateKey | Ed25519PrivateKey

# RFC 7518: 3.2 wants a secret as long as the hash, 3.3 wants RSA keys of 2048 bits and more.
MIN_SECRET_BYTES = 32
MIN_RSA_BITS = 2048
# Verifying with a larger one would hold everybody else up.
MAX_RSA_BITS = 8192
MAX_KEYS = 100
MAX_KEY_ID = 256

# What the members of a JWK say that it is for: type, curve -> algorithm.
_KINDS: Mapping[tuple[object, object], Algorithm] = {
    ("oct", None): "HS256",
    ("RSA", None): "RS256",
    ("EC", "P-256"): "ES256",
    ("OKP", "Ed25519"): "EdDSA",
}


class UnusableKey(ValueError):
    """This is no key that tokens can be verified with; the text says why and shows no secret."""


@dataclass(frozen=True, slots=True)
class Key:
    """A key and what it is for. The fingerprint tells whether two are the same."""

    algorithm: Algorithm
    material: bytes | PublicKey = field(repr=False, compare=False)
    fingerprint: bytes


@dataclass(frozen=True, slots=True)
class KeySet:
    """The keys that are valid at a time.

    ``by_id`` is empty where one key is for all tokens, whatever they call it. ``skipped`` says of
    each key that is not used why.
    """

    by_id: Mapping[str, Key] = field(default_factory=dict)
    only: Key | None = None
    any_id: bool = False
    skipped: tuple[str, ...] = ()

    def find(self, key_id: str | None) -> Key | None:
        """The key of this id; of a token that names none, the only one."""
        if key_id is None or self.any_id:
            return self.only
        return self.by_id.get(key_id)


def one_key(key: Key) -> KeySet:
    """A set of one key, for all tokens."""
    return KeySet(only=key, any_id=True)


# -- single keys


def secret_key(secret: bytes) -> Key:
    """A secret shared with whoever makes tokens. Raises UnusableKey."""
    if len(secret) < MIN_SECRET_BYTES:
        raise UnusableKey(f"it has less than {MIN_SECRET_BYTES} bytes")
    try:
        HMACAlgorithm(HMACAlgorithm.SHA256).prepare_key(secret)
    except InvalidKeyError:
        raise UnusableKey("it is another kind of key, which may be known to everybody") from None
    return Key("HS256", secret, hashlib.sha256(secret).digest())


def public_key(pem: bytes) -> Key:
    """A public key in PEM. Raises UnusableKey."""
    if b"PRIVATE KEY-----" in pem:
        raise UnusableKey("it is a private key; only the public one belongs here")
    try:
        return _public(load_pem_public_key(pem))
    except (ValueError, TypeError, UnsupportedAlgorithm) as error:
        if isinstance(error, UnusableKey):
            raise
        raise UnusableKey("it is no public key in PEM (-----BEGIN PUBLIC KEY-----)") from None


def private_key(pem: bytes) -> tuple[Algorithm, PrivateKey]:
    """A private key in PEM, and what it signs with. Raises UnusableKey."""
    try:
        key = load_pem_private_key(pem, password=None)
    except TypeError:
        raise UnusableKey("it is encrypted") from None
    except (ValueError, UnsupportedAlgorithm):
        raise UnusableKey("it is no private key in PEM (-----BEGIN PRIVATE KEY-----)") from None
    if not isinstance(key, PrivateKey):
        raise UnusableKey(_WRONG_KIND)
    return _public(key.public_key()).algorithm, key


def sign(
    claims: Mapping[str, object], algorithm: Algorithm, key: bytes | PrivateKey, key_id: str | None
) -> str:
    """A token, for the command line and for tests; the daemon makes none."""
    headers = None if key_id is None else {"kid": key_id}
    return PyJWS().encode(json.dumps(claims).encode(), key, algorithm, headers)


_WRONG_KIND = "it is neither an RSA, nor a P-256, nor an Ed25519 key"


def _public(key: object) -> Key:
    algorithm: Algorithm
    if isinstance(key, RSAPublicKey):
        if not MIN_RSA_BITS <= key.key_size <= MAX_RSA_BITS:
            bits = f"{MIN_RSA_BITS} to {MAX_RSA_BITS} bits"
            raise UnusableKey(f"an RSA key has {bits}, this one has {key.key_size}")
        algorithm = "RS256"
    elif isinstance(key, EllipticCurvePublicKey) and isinstance(key.curve, SECP256R1):
        algorithm = "ES256"
    elif isinstance(key, Ed25519PublicKey):
        algorithm = "EdDSA"
    else:
        raise UnusableKey(_WRONG_KIND)
    encoded = key.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    return Key(algorithm, key, hashlib.sha256(encoded).digest())


# -- sets (RFC 7517)


def read_key_set(document: bytes, *, allow_secrets: bool) -> KeySet:
    """A JWK set. Keys that are for something else are left out, as RFC 7517, 5 says.

    Raises UnusableKey where the document is no set, where two keys have one id, and where no key
    can be used.
    """
    try:
        content = read_json(document)
    except ValueError as error:
        raise UnusableKey(f"it is not JSON: {error}") from None
    entries = content.get("keys") if isinstance(content, dict) else None
    if not isinstance(entries, list):
        raise UnusableKey('it is no JWK set: {"keys": […]}')
    if len(entries) > MAX_KEYS:
        raise UnusableKey(f"it has more than {MAX_KEYS} keys")
    by_id: dict[str, Key] = {}
    keys: list[Key] = []
    skipped: list[str] = []
    for number, entry in enumerate(entries, 1):
        try:
            key_id, key = _read_key(entry, allow_secrets)
        except UnusableKey as reason:
            skipped.append(f"key {number}: {reason}")
            continue
        keys.append(key)
        if key_id in by_id:
            # Which one is meant cannot be known, and one of them may have been withdrawn.
            raise UnusableKey(f"two of its keys have the kid {key_id!r}")
        if key_id is not None:
            by_id[key_id] = key
    if not keys:
        reasons = f": {'; '.join(skipped[:3])}" if skipped else ""
        raise UnusableKey(f"none of its keys can be used{reasons}")
    return KeySet(by_id, keys[0] if len(keys) == 1 else None, skipped=tuple(skipped))


def _read_key(entry: object, allow_secrets: bool) -> tuple[str | None, Key]:
    """A key of a set and its id."""
    if not isinstance(entry, dict):
        raise UnusableKey("it is no object")
    key_id = entry.get("kid")
    if key_id is not None and not (isinstance(key_id, str) and 0 < len(key_id) <= MAX_KEY_ID):
        raise UnusableKey(f"its kid is no text of 1 to {MAX_KEY_ID} characters")
    if entry.get("use", "sig") != "sig":
        raise UnusableKey("its use is not sig")
    operations = entry.get("key_ops", ["verify"])
    if not isinstance(operations, list) or "verify" not in operations:
        raise UnusableKey("its key_ops do not have verify")
    kind = entry.get("kty"), entry.get("crv")
    try:
        algorithm = _KINDS.get(kind)
    except TypeError:  # a list or an object
        algorithm = None
    if algorithm is None:
        raise UnusableKey(_WRONG_KIND)
    if entry.get("alg", algorithm) != algorithm:
        raise UnusableKey(f"its alg is not {algorithm}, which such keys are used with")
    if algorithm == "HS256":
        if not allow_secrets:
            raise UnusableKey("it is a secret, and what is fetched is known to others")
        return key_id, secret_key(_secret_of(entry))
    if "d" in entry:
        raise UnusableKey("it is a private key, which whoever can read the set can sign with")
    try:
        return key_id, _public(PyJWK(entry, algorithm).key)
    except (PyJWTError, ValueError, TypeError, UnsupportedAlgorithm) as error:
        if isinstance(error, UnusableKey):
            raise
        raise UnusableKey("its numbers are not those of a key") from None


def _secret_of(entry: Mapping[str, Any]) -> bytes:
    secret = entry.get("k")
    try:
        if isinstance(secret, str):
            return base64url_decode(secret)
    except ValueError:
        pass
    raise UnusableKey("its k is not base64url")


# -- JSON


def read_json(text: bytes) -> Any:
    """JSON without a second meaning: no name twice, no NaN. Raises ValueError.

    What another reader takes from `{"sub": 1, "sub": 2}` cannot be known.
    """
    try:
        return json.loads(text.decode(), object_pairs_hook=_object, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    except UnicodeDecodeError:
        raise ValueError("it is not UTF-8") from None
    except json.JSONDecodeError as error:  # without the text, which may be a secret
        raise ValueError(f"{error.msg} at character {error.pos}") from None


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    members = dict(pairs)
    if len(members) < len(pairs):
        name = next(_repeated(pairs))
        raise ValueError(f"the name {name[:64]!r} is there twice")
    return members


def _repeated(pairs: list[tuple[str, Any]]) -> Iterator[str]:
    seen = set()
    for name, _ in pairs:
        if name in seen:
            yield name
        seen.add(name)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number")
