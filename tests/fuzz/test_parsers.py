"""Mutated input for the parsers of polls, publishes and stored messages.

Each input is accepted, or refused with a documented error; nothing else comes out, and what is
accepted keeps the rules. Three seconds a parser by default; ``FUZZ_SECONDS=300 make fuzz`` for
more. A failure names its seed, and the input is in the assertion.
"""

from __future__ import annotations

import binascii
import json
import os
import random
import time
import zlib
from collections.abc import Callable

import pytest

from messagebusd.errors import RequestError
from messagebusd.protocol import requests
from messagebusd.protocol.message import Audience, is_id
from messagebusd.protocol.publication import PublishRules, parse_publication
from messagebusd.protocol.requests import MAX_ID, PollLimits
from messagebusd.protocol.stored import (
    decode_envelope,
    decode_payload,
    encode_compact,
    encode_payload,
)

SECONDS = float(os.environ.get("FUZZ_SECONDS", "3"))
SEED = int(os.environ.get("FUZZ_SEED", "0")) or random.SystemRandom().randrange(2**32)

POLLS = [
    b'{"/foo":0,"/bar":-1,"__seq":12}',
    b'{"/foo":null,"/b\\u00e4r":"4abc","/x":3.9,"/y":[1],"/z":{"a":true}}',
    b"%2Ffoo=0&%2Fbar=-1&__seq=3",
    b"/foo=1&/foo=2&&=5&/a[b]=1;2&/c",
    "/föö=+1&/x=%C3%A4".encode(),
]
PUBLISHES = [
    b'{"channel":"/foo","data":{"a":[1,2.50,null,"x\\n\xc3\xa4"]},"user_ids":[1,"2"]}',
    b'{"channel":"/global/x","data":"y","client_ids":["c"],"max_backlog_size":3}',
    b'{"channel":"/distributed_hash","user_ids":[-1],"data":{"op":"set","key":"a","value":1,'
    b'"marshalled":false,"origin":"o","hash_key":"h"}}',
    b'{ "channel" : "/a" , "data" : -1.5e+10 , "site_id" : "s", "group_ids" : [ -3 ] }',
]
PAYLOADS = [
    b'1|1|/foo|{"data":{"a":1},"user_ids":[1,2],"group_ids":[3],"client_ids":["c1"]}',
    b'4|1|/foo$$$123$$$siteA|{"data":"multi","user_ids":null,"group_ids":[],"client_ids":null}',
]
COMPACT = [
    b"1|1|/foo|" + encode_compact(b'{"a":[1,"x"]}', Audience([1, 2, 9, -4], ["g"]), from_ids=1),
    b"4|1|/foo$$$123$$$siteA|" + encode_compact(b'"multi"', Audience(None, None, "ab"), from_ids=1),
]
# What is inside, before it is packed.
AUDIENCES = [
    b"[[1,2,7,-9],null,null]",
    b'[["a","7"],[1,"b"],["c1"]]',
    b"[null,[9223372036854775807,-1],null]",
]
TOKENS = [
    *(b'{}[]",:\\|&=%;+-.0123456789eE \t\r\n\x00\x7f\x80\xc3\xff'[i : i + 1] for i in range(45)),
    b"null",
    b"true",
    b"NaN",
    b"1e999",
    b"-0",
    b"9" * 400,
    b"\\ud800",
    b"\\u0000",
    b"%00",
    b"%ff",
    b"$|$",
    b"$$123$$",
    b"\xed\xa0\x80",
    b"[" * 200,
    b"__seq",
    b"marshalled",
]


def mutate(rng: random.Random, seeds: list[bytes]) -> bytes:
    body = bytearray(rng.choice(seeds))
    for _ in range(rng.randrange(6)):
        at = rng.randrange(len(body) + 1)
        match rng.randrange(5):
            case 0:
                body[at:at] = rng.choice(TOKENS)
            case 1:
                del body[at : at + rng.randrange(1, 8)]
            case 2:
                body[at : at + 1] = rng.choice(TOKENS)
            case 3:
                other = rng.choice(seeds)
                cut = rng.randrange(len(other) + 1)
                body[at:] = other[cut:]
            case 4:
                end = at + rng.randrange(1, 20)
                body[at:at] = body[at:end] * rng.randrange(1, 4)
    return bytes(body)


def fuzz(seeds: list[bytes], try_one: Callable[[bytes], bool]) -> None:
    """Run for SECONDS; ``try_one`` says whether the input was accepted."""
    rng = random.Random(SEED)
    until = time.monotonic() + SECONDS
    accepted = refused = 0
    while time.monotonic() < until:
        for _ in range(100):
            body = mutate(rng, seeds)
            try:
                accepted_this = try_one(body)
            except BaseException as error:
                raise AssertionError(f"seed {SEED}: {body!r}") from error
            accepted += accepted_this
            refused += not accepted_this
    # A generator that only makes garbage, or none, tests nothing.
    assert min(accepted, refused) > (accepted + refused) / 50


@pytest.mark.timeout(SECONDS + 60)
def test_polls():
    limits = PollLimits()

    def try_one(body: bytes) -> bool:
        try:
            pairs = (
                requests.json_pairs(body)
                if body.startswith((b"{", b"["))
                else requests.form_pairs(body, 100)
            )
            request = requests.parse_poll(pairs, limits)
        except RequestError as error:
            assert error.status == 400
            return False
        for channel, position in request.positions.items():
            assert channel.isprintable() or not any(ord(each) < 32 for each in channel)
            assert position is None or -MAX_ID <= position <= MAX_ID
        return True

    fuzz(POLLS, try_one)


@pytest.mark.timeout(SECONDS + 60)
def test_publishes():
    limits = PublishRules(max_data=10_000)

    def try_one(body: bytes) -> bool:
        try:
            publication = parse_publication(body, limits)
        except RequestError as error:
            assert error.status in (400, 413, 422)
            return False
        # What is published is what any JSON parser reads from the request.
        published = json.loads(publication.data)
        assert published == json.loads(body)["data"] or publication.channel == "/distributed_hash"
        assert b"\n" not in publication.data
        assert (
            "marshalled" not in str(published)
            or publication.channel != "/distributed_hash"
            or (published["marshalled"] is False)
        )
        audience = publication.audience
        for ids in (audience.user_ids, audience.group_ids, audience.client_ids) if audience else ():
            assert ids is None or ids
        return True

    fuzz(PUBLISHES, try_one)


@pytest.mark.timeout(SECONDS + 60)
def test_stored_payloads():
    def try_one(body: bytes) -> bool:
        try:
            message = decode_payload(body)
        except ValueError:
            return False
        assert decode_payload(encode_payload(message)).encoded == message.encoded
        return True

    fuzz(PAYLOADS, try_one)


@pytest.mark.timeout(SECONDS + 60)
def test_compact_payloads():
    def try_one(body: bytes) -> bool:
        try:
            message = decode_payload(body)
        except ValueError:
            return False
        assert decode_payload(encode_payload(message)).encoded == message.encoded
        assert json.loads(message.encoded)["channel"] == message.channel
        return True

    fuzz(COMPACT, try_one)


@pytest.mark.timeout(SECONDS + 60)
def test_packed_audiences():
    def try_one(inside: bytes) -> bool:
        packed = binascii.b2a_base64(zlib.compress(inside, 0), newline=False)
        try:
            data, audience = decode_envelope(b"compact:%b 1" % packed)
        except ValueError:
            return False
        # Whoever is found there may be told; that it is for nobody in particular, never.
        assert (data, audience is None) == (b"1", False)
        lists = [audience.user_ids, audience.group_ids, audience.client_ids]
        assert any(lists)
        assert all(ids is None or (ids and all(map(is_id, ids))) for ids in lists)
        assert decode_envelope(encode_compact(data, audience, from_ids=1)) == (data, audience)
        return True

    fuzz(AUDIENCES, try_one)
