"""Signed tokens: who is believed, what is refused, and that nothing in between exists."""

from __future__ import annotations

import base64
import json
import math
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from hypothesis import given
from hypothesis import strategies as st
from jwt.api_jws import PyJWS
from multidict import CIMultiDict

from messagebusd.errors import InvalidToken, LookupUnavailable, Unauthorized
from messagebusd.identity import jwt as jwt_module
from messagebusd.identity.base import ANONYMOUS, Identity
from messagebusd.identity.jwks import FixedKeys, Keys
from messagebusd.identity.jwt import MAX_TOKEN_BYTES, JwtLookup
from messagebusd.identity.jwt_keys import one_key, public_key, read_key_set, secret_key
from messagebusd.settings import LookupJwt
from tests.support.clock import FakeClock
from tests.support.properties import examples
from tests.support.tokens import (
    ALGORITHMS,
    SECRET,
    forge,
    jwk,
    jwks,
    part,
    private_key,
    public_pem,
    secret_jwk,
    sign,
)

NOW = 1_900_000_000.0
EXP = NOW + 60
LEEWAY = 10.0


@dataclass
class Caller:
    headers: Any = field(default_factory=dict)
    trusted: bool = False
    client_id: str = ""
    method: str = "POST"
    path: str = ""
    query: str = ""
    remote_addr: str = ""


def keys_for(kind: str) -> Keys:
    key = secret_key(SECRET.encode()) if kind == "HS256" else public_key(public_pem(kind))
    return FixedKeys(one_key(key))


def key_set(*entries: Any) -> Keys:
    return FixedKeys(read_key_set(jwks(*entries), allow_secrets=True))


def lookup(
    keys: Keys | str = "HS256", *, id_type: Any = "as_is", clock: Any = None, **options: Any
) -> JwtLookup:
    keys = keys_for(keys) if isinstance(keys, str) else keys
    return JwtLookup(keys, LookupJwt(**options), id_type, clock or FakeClock(NOW))


def claims(**others: Any) -> dict[str, Any]:
    found = {"sub": 42, "exp": EXP, **others}
    return {name: value for name, value in found.items() if value is not ...}


async def identify(found: JwtLookup, *headers: tuple[str, str]) -> Identity:
    return await found.identify(Caller(CIMultiDict(headers)))


async def refused(found: JwtLookup, token: str) -> str:
    with pytest.raises(InvalidToken) as caught:
        await found.verify(token)
    assert (caught.value.status, caught.value.code) == (401, "invalid_token")
    assert caught.value.headers == {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    assert SECRET not in caught.value.detail
    return caught.value.detail


# -- what a token says


@pytest.mark.parametrize("kind", ALGORITHMS)
async def test_each_algorithm(kind: str) -> None:
    assert await lookup(kind).verify(sign(claims(), kind)) == Identity(42, expires_at=EXP)


async def test_all_that_a_token_may_say() -> None:
    token = sign(claims(sub="ada", groups=[1, "staff"], site="forum", channels=["/chat/*"]))
    found = await lookup().verify(token)
    assert found.user_id == "ada"
    assert found.group_ids == {1, "staff"}
    assert (found.site_id, found.is_admin, found.forced_channels) == ("forum", False, None)
    assert found.allowed_channels is not None
    assert "/chat/1" in found.allowed_channels
    assert "/news" not in found.allowed_channels


async def test_no_channels_are_none_and_a_missing_claim_is_all() -> None:
    none = (await lookup().verify(sign(claims(channels=[])))).allowed_channels
    assert none is not None
    assert "/a" not in none
    assert (await lookup().verify(sign(claims()))).allowed_channels is None


async def test_a_token_without_a_user_is_a_visitors() -> None:
    found = await lookup().verify(sign(claims(sub=..., site="forum")))
    assert found == Identity(None, site_id="forum", expires_at=EXP)


async def test_claims_have_names_of_the_applications_own() -> None:
    found = lookup(
        user_claim="realm.user.id",
        groups_claim="https://forum.example/groups",
        site_claim="a.b",
        channels_claim="bus.channels",
    )
    token = sign(
        {
            "exp": EXP,
            "sub": 1,
            "realm": {"user": {"id": 7}},
            "https://forum.example/groups": [3],
            "a.b": "whole",
            "a": {"b": "path"},
            "bus": {},
        }
    )
    assert await found.verify(token) == Identity(7, frozenset({3}), "whole", expires_at=EXP)
    for broken in ({"realm": 5}, {"realm": {"user": None}}, {"bus": None}, {"bus": []}):
        await refused(found, sign({"exp": EXP, **broken}))


@pytest.mark.parametrize(
    ("id_type", "sub", "user_id"),
    [
        ("as_is", 42, 42),
        ("as_is", "42", "42"),
        ("as_is", 0, 0),
        ("integer", "42", 42),
        ("integer", 42, 42),
        ("integer", "-5", -5),
        ("string", 42, "42"),
        ("string", "ä", "ä"),
    ],
)
async def test_ids_are_normalised(id_type: str, sub: Any, user_id: Any) -> None:
    found = await lookup(id_type=id_type).verify(sign(claims(sub=sub, groups=[sub])))
    assert (type(found.user_id), found.user_id) == (type(user_id), user_id)
    assert found.group_ids == {user_id}


@pytest.mark.parametrize("text", ["4_2", " 42", "+42", "٤٢", "４２", "4.2", "0x2a", "", "9" * 20])
async def test_what_looks_like_an_integer_is_not_somebody_else(text: str) -> None:
    await refused(lookup(id_type="integer"), sign(claims(sub=text)))
    await refused(lookup(id_type="integer"), sign(claims(groups=[text])))


@pytest.mark.parametrize(
    "wrong",
    [
        {"sub": True},
        {"sub": 42.0},
        {"sub": None},
        {"sub": ""},
        {"sub": [42]},
        {"sub": {"id": 42}},
        {"sub": -1},
        {"sub": "-1"},
        {"sub": "a\0b"},
        {"sub": "a\nb"},
        {"sub": "\ud800"},
        {"groups": "staff"},
        {"groups": 1},
        {"groups": None},
        {"groups": {"1": 1}},
        {"groups": [True]},
        {"groups": [1.5]},
        {"groups": [None]},
        {"groups": [[1]]},
        {"groups": [""]},
        {"groups": ["\udfff"]},
        {"site": 1},
        {"site": ""},
        {"site": None},
        {"site": "a|b"},
        {"site": "a$|$b"},
        {"site": "a\0"},
        {"site": "\ud800"},
        {"site": "x" * 129},
        {"channels": "/chat/*"},
        {"channels": None},
        {"channels": {"/chat/*": 0}},
        {"channels": [1]},
        {"channels": [None]},
        {"channels": [""]},
        {"channels": ["/a\0"]},
    ],
    ids=repr,
)
async def test_claims_of_wrong_types_are_refused(wrong: dict[str, Any]) -> None:
    await refused(lookup(), sign(claims(**wrong)))
    if "sub" in wrong:
        for id_type in ("integer", "string"):
            await refused(lookup(id_type=id_type), sign(claims(**wrong)))


# -- times


@pytest.mark.parametrize(
    ("at", "valid"),
    [
        ({"exp": NOW + 1}, True),
        ({"exp": NOW - LEEWAY + 0.5}, True),
        ({"exp": NOW - LEEWAY}, False),
        ({"exp": NOW - 1000}, False),
        ({"exp": 0}, False),
        ({"exp": -1e14}, False),
        ({"exp": 9e14}, True),
        ({"nbf": NOW}, True),
        ({"nbf": NOW + LEEWAY}, True),
        ({"nbf": NOW + LEEWAY + 0.5}, False),
        ({"nbf": 0}, True),
        # When it was made is for the application to know.
        ({"iat": NOW + 1000}, True),
    ],
)
async def test_times_and_how_far_clocks_may_differ(at: dict[str, Any], valid: bool) -> None:
    token = sign(claims(**at))
    if valid:
        found = await lookup(leeway=LEEWAY).verify(token)
        assert found.expires_at == at.get("exp", EXP)  # without the leeway
    else:
        await refused(lookup(leeway=LEEWAY), token)


async def test_no_leeway() -> None:
    assert await lookup(leeway=0.0).verify(sign(claims(exp=NOW + 0.1)))
    await refused(lookup(leeway=0.0), sign(claims(exp=NOW)))
    await refused(lookup(leeway=0.0), sign(claims(nbf=NOW + 0.1)))


@pytest.mark.parametrize("name", ["exp", "nbf"])
@pytest.mark.parametrize(
    "value", ["null", "true", '"1900000060"', "[1900000060]", "1e999", "-1e999", "1e15", "9" * 400]
)
async def test_times_that_are_none(name: str, value: str) -> None:
    other = f', "exp": {EXP}' if name == "nbf" else ""
    await refused(lookup(), sign(f'{{"sub": 42{other}, "{name}": {value}}}'))


async def test_a_token_must_end() -> None:
    assert "exp" in await refused(lookup(), sign(claims(exp=...)))


# -- whose and for whom


@pytest.mark.parametrize("iss", [..., None, "", "https://evil.example", ["https://a.example"], 1])
async def test_the_issuer_must_be_the_one(iss: Any) -> None:
    found = lookup(issuer="https://a.example")
    assert await found.verify(sign(claims(iss="https://a.example")))
    await refused(found, sign(claims(iss=iss)))


@pytest.mark.parametrize("aud", [..., None, "", [], "bus2", ["other"], {"bus": 1}, 1, [["bus"]]])
async def test_the_audience_must_be_in_it(aud: Any) -> None:
    found = lookup(audience="bus")
    assert await found.verify(sign(claims(aud="bus")))
    assert await found.verify(sign(claims(aud=["other", "bus"])))
    await refused(found, sign(claims(aud=aud)))


async def test_a_token_for_somebody_else_is_refused_without_a_name_of_ours() -> None:
    assert await lookup().verify(sign(claims(aud=[])))
    for aud in ("bus", ["bus"], "", None, 5):
        await refused(lookup(), sign(claims(aud=aud)))


# -- attacks


ATTACKS = {
    "none": lambda: forge(claims(), {"alg": "none"}),
    "None": lambda: forge(claims(), {"alg": "None"}, SECRET.encode()),
    "none with our signature": lambda: forge(claims(), {"alg": "none"}, SECRET.encode()),
    "no alg": lambda: forge(claims(), {"typ": "JWT"}, SECRET.encode()),
    "alg is null": lambda: forge(claims(), {"alg": None}, SECRET.encode()),
    "alg is a list": lambda: forge(claims(), {"alg": ["HS256"]}, SECRET.encode()),
    "alg in another case": lambda: forge(claims(), {"alg": "hs256"}, SECRET.encode()),
    "HS384": lambda: forge(claims(), {"alg": "HS384"}, SECRET.encode()),
    "alg twice": lambda: forge(claims(), b'{"alg":"none","alg":"HS256"}', SECRET.encode()),
    "header is a list": lambda: forge(claims(), ["HS256"], SECRET.encode()),
    "header is no JSON": lambda: forge(claims(), b"{alg:HS256}", SECRET.encode()),
    "header is no UTF-8": lambda: forge(claims(), b'{"alg":"HS256\xff"}', SECRET.encode()),
    "header is deep": lambda: forge(claims(), b"[" * 3000, SECRET.encode()),
    "empty secret": lambda: forge(claims(), {"alg": "HS256"}, b""),
    "another secret": lambda: forge(claims(), {"alg": "HS256"}, SECRET.encode() + b"!"),
    "crit": lambda: sign(claims(), crit=["exp"]),
    "crit that is known elsewhere": lambda: forge(
        claims(), {"alg": "HS256", "b64": False, "crit": ["b64"]}, SECRET.encode()
    ),
    "b64": lambda: forge(claims(), {"alg": "HS256", "b64": True}, SECRET.encode()),
    "empty crit": lambda: forge(claims(), {"alg": "HS256", "crit": []}, SECRET.encode()),
    "kid is a number": lambda: forge(claims(), {"alg": "HS256", "kid": 1}, SECRET.encode()),
    "kid is an object": lambda: forge(claims(), {"alg": "HS256", "kid": {}}, SECRET.encode()),
    "kid is huge": lambda: sign(claims(), kid="k" * 257),
    "payload is a list": lambda: sign([claims()]),
    "payload is text": lambda: sign('"sub"'),
    "payload is null": lambda: sign("null"),
    "payload is empty": lambda: sign(" "),
    "payload is no JSON": lambda: sign("{sub:42}"),
    "payload is no UTF-8": lambda: sign(b'{"sub":"\xff","exp":1900000060}'),
    "payload has a byte order mark": lambda: sign(b'\xef\xbb\xbf{"sub":42,"exp":1900000060}'),
    "payload goes on": lambda: sign(json.dumps(claims()) + "{}"),
    "payload is deep": lambda: sign('{"sub":' + "[" * 3000),
    "sub twice": lambda: sign(f'{{"sub":42,"exp":{EXP},"sub":43}}'),
    "exp twice": lambda: sign(f'{{"sub":42,"exp":1,"exp":{EXP}}}'),
    "a name twice below": lambda: sign(f'{{"sub":42,"exp":{EXP},"x":{{"a":1,"a":2}}}}'),
    "exp is NaN": lambda: sign('{"sub":42,"exp":NaN}'),
    "exp is Infinity": lambda: sign('{"sub":42,"exp":Infinity}'),
    "two parts": lambda: sign(claims()).rpartition(".")[0],
    "four parts": lambda: sign(claims()) + ".e30",
    "five parts": lambda: sign(claims()) + ".e30.e30",
    "no signature": lambda: sign(claims()).rpartition(".")[0] + ".",
    "padding": lambda: sign(claims()) + "=",
    "space": lambda: sign(claims()).replace(".", ". ", 1),
    "line": lambda: sign(claims()) + "\n",
    "NUL": lambda: sign(claims()) + "\0",
    "not ASCII": lambda: sign(claims()) + "é",
    "half a character": lambda: sign(claims()) + "\udcff",
    "ordinary base64": lambda: sign(claims()).replace(".", ".+/", 1),
    "empty": lambda: "",
    "word": lambda: "undefined",
    "too long": lambda: sign(claims(x="x" * MAX_TOKEN_BYTES)),
}


@pytest.mark.parametrize("make", ATTACKS.values(), ids=ATTACKS)
async def test_attacks_are_refused(make: Any) -> None:
    await refused(lookup(), make())


async def test_a_long_token_is_not_even_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jwt_module, "_TOKEN", None)
    await refused(lookup(), "." * (MAX_TOKEN_BYTES + 1))


async def test_the_limit_of_the_length_is_exact() -> None:
    longest = "a.b." + "c" * (MAX_TOKEN_BYTES - 4)
    assert "bytes" not in await refused(lookup(), longest)
    assert "bytes" in await refused(lookup(), longest + "c")


@pytest.mark.parametrize("kind", ["RS256", "ES256", "EdDSA"])
async def test_a_public_key_is_no_secret(kind: str) -> None:
    """Algorithm confusion: whoever knows the public key must not be able to sign."""
    pem = public_pem(kind)
    known = private_key(kind).public_key()
    der = known.public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    entry = jwk(kind, kid="k")
    for secret in (pem, pem.rstrip(), der, base64.b64encode(der), json.dumps(entry).encode()):
        for header in ({"alg": "HS256"}, {"alg": "HS256", "kid": "k"}):
            await refused(lookup(kind), forge(claims(), header, secret))
            await refused(lookup(key_set(entry)), forge(claims(), header, secret))


@pytest.mark.parametrize("kind", ALGORITHMS)
@pytest.mark.parametrize("other", [*ALGORITHMS, "RS256-2", "ES256-2", "EdDSA-2"])
async def test_a_key_is_for_its_own_algorithm_and_tokens(kind: str, other: str) -> None:
    token = sign(claims(), other)
    if kind == other:
        assert await lookup(kind).verify(token)
    else:
        await refused(lookup(kind), token)


async def test_other_algorithms_of_the_same_key() -> None:
    rsa, secret = private_key("RS256"), "s" * 64
    payload = json.dumps(claims()).encode()
    for algorithm in ("RS384", "RS512", "PS256", "PS512"):
        await refused(lookup("RS256"), PyJWS().encode(payload, rsa, algorithm))
    keys = FixedKeys(one_key(secret_key(secret.encode())))
    for algorithm in ("HS384", "HS512"):
        await refused(lookup(keys), PyJWS().encode(payload, secret, algorithm))


async def test_keys_that_a_token_brings_are_not_read() -> None:
    mine = jwk("RS256-evil")
    for header in (
        {"jwk": mine},
        {"jwk": mine, "kid": "k"},
        {"jku": "http://127.0.0.1:1/jwks"},
        {"x5u": "http://127.0.0.1:1/cert"},
        {"x5c": ["MII"]},
    ):
        token = sign(claims(), "RS256-evil", **header)
        await refused(lookup("RS256"), token)
        await refused(lookup(key_set(jwk("RS256", kid="k"))), token)
        # What such a header says is nothing, also where the signature is right.
        assert await lookup("RS256").verify(sign(claims(), "RS256", **header))


@pytest.mark.parametrize(
    "kid", ["../../dev/null", "/dev/null", "k' OR '1'='1", "K", "k\0", "", "http://127.0.0.1:1/k"]
)
async def test_a_kid_is_a_name_and_nothing_else(kid: str) -> None:
    found = lookup(key_set(jwk("RS256", kid="k"), secret_jwk(kid="s")))
    assert await found.verify(sign(claims(), "RS256", kid="k"))
    assert await found.verify(sign(claims(), kid="s"))
    await refused(found, sign(claims(), "RS256", kid=kid))
    await refused(found, forge(claims(), {"alg": "HS256", "kid": kid}, b""))


async def test_the_kid_chooses_the_key_and_so_the_algorithm() -> None:
    found = lookup(key_set(jwk("RS256", kid="r"), jwk("ES256", kid="e"), secret_jwk(kid="s")))
    for kind, kid in (("RS256", "r"), ("ES256", "e"), ("HS256", "s")):
        assert await found.verify(sign(claims(), kind, kid=kid))
        for other in {"r", "e", "s"} - {kid}:
            await refused(found, sign(claims(), kind, kid=other))
        assert "kid" in await refused(found, sign(claims(), kind))


async def test_a_token_without_a_kid_needs_a_set_of_one_key() -> None:
    for entry in (jwk("RS256"), jwk("RS256", kid="k")):
        assert await lookup(key_set(entry)).verify(sign(claims(), "RS256"))


async def test_a_secret_of_the_settings_is_for_any_kid() -> None:
    assert await lookup().verify(sign(claims(), kid="whatever"))


# -- where it is

GOOD = sign(claims())
OTHER = sign(claims(sub=43))


@pytest.mark.parametrize(
    "headers",
    [
        [],
        [("Cookie", f"token={GOOD}")],
        [("X-Token", GOOD)],
        [("Authorization", f"Basic {GOOD}")],
        [("Authorization", "")],
    ],
)
async def test_no_token_is_an_anonymous_visitor(headers: Any) -> None:
    assert await identify(lookup(), *headers) is ANONYMOUS
    with pytest.raises(Unauthorized) as caught:
        await identify(lookup(required=True), *headers)
    assert (caught.value.status, caught.value.code) == (401, "unauthorized")
    assert caught.value.headers == {"WWW-Authenticate": "Bearer"}


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", f"Bearer {GOOD}")],
        [("authorization", f"  bearer   {GOOD}  ")],
        [("AUTHORIZATION", f"BEARER\t{GOOD}")],
        [("Authorization", f"Bearer {GOOD}"), ("Authorization", f"Bearer {GOOD}")],
        [("Authorization", f"Bearer {GOOD}"), ("Cookie", f"t={GOOD}")],
        [("Cookie", f"t={GOOD}")],
        [("Cookie", f'a=b; t="{GOOD}";c')],
        [("Cookie", "a=b"), ("Cookie", f"t={GOOD}")],
        [("Cookie", f"t=; t={GOOD}")],
        [("Cookie", f"t={GOOD}"), ("Authorization", "Basic dTpw")],
    ],
)
async def test_places_of_a_token(headers: Any) -> None:
    assert (await identify(lookup(cookie="t"), *headers)).user_id == 42


async def test_a_header_of_its_own() -> None:
    found = lookup(header="X-Poll-Token")
    assert (await identify(found, ("x-poll-token", f" {GOOD} "))).user_id == 42
    assert await identify(found, ("X-Poll-Token", "")) is ANONYMOUS
    # Authorization is then for somebody else.
    assert await identify(found, ("Authorization", f"Bearer {GOOD}")) is ANONYMOUS
    with pytest.raises(InvalidToken):
        await identify(found, ("X-Poll-Token", f"Bearer {GOOD}"))


@pytest.mark.parametrize(
    "headers",
    [
        [("Authorization", f"Bearer {GOOD}"), ("Authorization", f"Bearer {OTHER}")],
        [("Authorization", f"Bearer {GOOD}"), ("Cookie", f"t={OTHER}")],
        [("Cookie", f"t={GOOD}; t={OTHER}")],
        [("Cookie", f"t={GOOD}"), ("Cookie", f"t={OTHER}")],
        [("Cookie", f"t={GOOD}; t=undefined")],
        [("Authorization", "Bearer")],
        [("Authorization", "Bearer ")],
        [("Authorization", GOOD)],
        [("Authorization", "Bearer undefined")],
        [("Authorization", f"Bearer {GOOD}, Bearer {GOOD}")],
        [("Authorization", f"Bearer Bearer {GOOD}")],
        [("Authorization", f"Bearer {GOOD}"), ("Authorization", GOOD)],
        [("Cookie", "t=undefined")],
        [("Cookie", f"t={GOOD} {GOOD}")],
    ],
)
async def test_who_tries_and_fails_is_not_anonymous(headers: Any) -> None:
    with pytest.raises(InvalidToken):
        await identify(lookup(cookie="t"), *headers)


async def test_names_of_cookies_are_exact() -> None:
    for name in ("T", "xt", "t2", "__Host-t"):
        assert await identify(lookup(cookie="t"), ("Cookie", f"{name}={GOOD}")) is ANONYMOUS


# -- remembering


class ChangingKeys(Keys):
    """Keys that a test changes; counts how often they were asked for."""

    def __init__(self) -> None:
        self.now = read_key_set(jwks(jwk("RS256", kid="k")), allow_secrets=False)
        self.is_away = False

    async def find(self, key_id: str | None) -> Any:
        if self.is_away:
            raise LookupUnavailable("away")
        return self.now.find(key_id)


async def test_a_remembered_token_ends_with_its_time() -> None:
    clock = FakeClock(NOW)
    found = lookup(clock=clock, leeway=LEEWAY)
    token = sign(claims(exp=NOW + 5))
    first = await found.verify(token)
    clock.advance(5 + LEEWAY - 0.5)
    assert await found.verify(token) is first
    clock.advance(0.5)
    await refused(found, token)
    clock.now = NOW - 100  # clocks are set, too
    await found.verify(token)


async def test_a_remembered_token_is_not_valid_before_its_time() -> None:
    clock = FakeClock(NOW)
    found = lookup(clock=clock, leeway=0.0)
    token = sign(claims(nbf=NOW))
    assert await found.verify(token)
    clock.now = NOW - 1
    await refused(found, token)


async def test_a_remembered_token_ends_with_its_key() -> None:
    keys = ChangingKeys()
    found = lookup(keys)
    token = sign(claims(), "RS256", kid="k")
    first = await found.verify(token)
    assert await found.verify(token) is first
    keys.now = read_key_set(jwks(jwk("RS256", kid="k", use="sig")), allow_secrets=False)
    assert await found.verify(token) is first  # the same key, read again
    keys.now = read_key_set(jwks(jwk("RS256-2", kid="k")), allow_secrets=False)
    await refused(found, token)
    keys.now = read_key_set(jwks(jwk("RS256-2", kid="other")), allow_secrets=False)
    await refused(found, token)
    keys.now = read_key_set(jwks(jwk("RS256", kid="k")), allow_secrets=False)
    assert await found.verify(token) == first
    keys.is_away = True
    with pytest.raises(LookupUnavailable):
        await found.verify(token)


async def test_what_is_remembered_is_bounded_and_never_what_was_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(jwt_module, "MAX_REMEMBERED", 3)
    found = lookup()
    identities = [await found.verify(sign(claims(sub=each))) for each in range(3)]
    assert await found.verify(sign(claims(sub=0))) is identities[0]  # now the last in line
    for bad in (sign(claims(exp=NOW - 99)), sign(claims(sub=True)), forge(claims(), {}, b"")):
        await refused(found, bad)
    assert len(found._remembered) == 3
    await found.verify(sign(claims(sub=3)))
    assert len(found._remembered) == 3
    assert await found.verify(sign(claims(sub=0))) is identities[0]
    assert await found.verify(sign(claims(sub=1))) is not identities[1]


# -- properties


_LOOKUPS = {kind: lookup(kind) for kind in ALGORITHMS}
_TOKENS = {
    kind: sign(claims(groups=[1], site="forum", channels=["/a"]), kind) for kind in ALGORITHMS
}


@examples(3)
@given(
    kind=st.sampled_from(ALGORITHMS),
    place=st.integers(0, 2000),
    character=st.characters(max_codepoint=0x100) | st.sampled_from("AQgw-_.="),
    change=st.sampled_from(["replace", "insert", "delete", "truncate"]),
)
async def test_a_changed_token_is_nobody_elses(
    kind: str, place: int, character: str, change: str
) -> None:
    token = _TOKENS[kind]
    place %= len(token)
    after = place if change == "insert" else place + 1
    middle = "" if change in ("delete", "truncate") else character
    changed = token[:place] + middle + ("" if change == "truncate" else token[after:])
    original = await _LOOKUPS[kind].verify(token)
    try:
        found = await _LOOKUPS[kind].verify(changed)
    except InvalidToken:
        return
    assert found == original


@pytest.mark.parametrize("kind", ALGORITHMS)
async def test_a_changed_signature_or_claim_is_refused(kind: str) -> None:
    """Every character of it, changed by each of its bits."""
    token = _TOKENS[kind]
    alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-_"
    for place, character in enumerate(token):
        if character == ".":
            continue
        for bit in (0, 3, 5) if kind == "RS256" else (0, 5):
            other = alphabet[alphabet.index(character) ^ (1 << bit)]
            await refused(_LOOKUPS[kind], token[:place] + other + token[place + 1 :])


@given(payload=st.binary(max_size=200))
async def test_any_payload_is_an_identity_or_refused(payload: bytes) -> None:
    with suppress(InvalidToken):
        await lookup().verify(sign(payload))


_CLAIMS = ("sub", "groups", "site", "channels", "exp", "nbf", "iss", "aud")
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)


@given(
    said=st.fixed_dictionaries(
        {},
        optional=dict.fromkeys(_CLAIMS, _JSON),
    ),
    expires=st.booleans(),
)
async def test_any_claims_are_an_identity_or_refused(said: dict[str, Any], expires: bool) -> None:
    if expires:
        said["exp"] = EXP
    try:
        found = await lookup().verify(sign(said))
    except InvalidToken:
        return
    assert found.user_id == said.get("sub")
    assert type(found.user_id) in (int, str, type(None))
    assert found.site_id == said.get("site")
    assert found.expires_at is not None
    assert math.isfinite(found.expires_at)


@given(header=_JSON)
async def test_any_header_is_refused_or_ours(header: Any) -> None:
    try:
        await lookup().verify(forge(claims(), header, SECRET.encode()))
    except InvalidToken:
        return
    assert header["alg"] == "HS256"


def test_the_parts_of_a_forged_token_are_real() -> None:
    assert part(b'{"alg"') == "eyJhbGci"
    assert sign(claims()).count(".") == 2
