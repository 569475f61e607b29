"""Envelopes of the ``compact`` codec: what comes back, how small they are, and what is refused."""

from __future__ import annotations

import binascii
import json
import random
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd.protocol.audiences import pack_audience, unpack_audience
from messagebusd.protocol.message import Audience
from messagebusd.protocol.stored import (
    COMPACT_FROM_IDS,
    decode_envelope,
    decode_payload,
    encode_compact,
    encode_envelope,
)

DATA = b'{"b": 2.50,"a":"x | \\u00e4 \xc3\xa4"}'
NUMBERS = st.integers(-(2**63), 2**63 - 1)
IDS = st.none() | st.lists(st.integers() | st.text(max_size=5), min_size=1, max_size=9)
ALIKE = st.lists(NUMBERS, min_size=1, max_size=9) | st.lists(st.text(), min_size=1, max_size=9)


def packed(text: bytes, **deflate: int) -> bytes:
    """As `pack_audience` does it, of any text."""
    compress = zlib.compressobj(1, strategy=deflate.get("strategy", zlib.Z_HUFFMAN_ONLY))
    return binascii.b2a_base64(compress.compress(text) + compress.flush(), newline=False)


@given(st.tuples(IDS, IDS, IDS) | st.tuples(ALIKE, ALIKE, ALIKE))
def test_lists_come_back_as_they_were(ids) -> None:
    """In their order, with what is twice in them, 7 and "7" apart, and of any size."""
    if ids == (None, None, None):
        return
    envelope = encode_compact(DATA, Audience(*ids), from_ids=1)
    data, audience = decode_envelope(envelope)
    assert (data, audience) == (DATA, Audience(*ids))
    assert audience is not None
    assert audience.users == Audience(*ids).users
    for found, given_ids in zip(
        (audience.user_ids, audience.group_ids, audience.client_ids), ids, strict=True
    ):
        assert [*map(type, found or ())] == [*map(type, given_ids or ())]
    assert b"\0" not in envelope


@pytest.mark.parametrize(
    "ids",
    [
        [5, 3, 3, -1, 0, 5],
        [-(2**63), -1, 2**62],
        [2**63 - 1],
        ["7", "", "ä|\0", "\U0001f600"],
        [7, "7", -7],
        range(COMPACT_FROM_IDS),
    ],
    ids=str,
)
def test_these_are_packed(ids) -> None:
    envelope = encode_compact(DATA, Audience(client_ids=["c"], user_ids=ids), from_ids=1)
    assert envelope.startswith(b"compact:")
    assert envelope.endswith(b" " + DATA)
    assert envelope.split(b" ")[0].isascii()


@pytest.mark.parametrize(
    "ids", [[2**63], [-(2**63), 2**63 - 1], [-(2**70), "a"], [2**63 - 1, -(2**63)]], ids=str
)
def test_what_is_too_large_to_be_packed_is_stored_as_json(ids) -> None:
    audience = Audience(ids)
    assert encode_compact(DATA, audience, from_ids=1) == encode_envelope(DATA, audience)


def test_few_ids_are_stored_as_json() -> None:
    few = Audience(range(COMPACT_FROM_IDS - 2), ["g"])
    assert encode_compact(DATA, few) == encode_envelope(DATA, few)
    assert encode_compact(DATA, None) == encode_envelope(DATA, None)
    many = Audience(range(COMPACT_FROM_IDS - 2), ["g"], ["c"])
    assert encode_compact(DATA, many) != encode_envelope(DATA, many)


def test_it_is_markedly_smaller() -> None:
    ids = sorted(random.Random(7).sample(range(1, 1_000_000), 10_000))
    for audience, times in ((Audience(ids), 3.5), (Audience(range(5000, 15_000)), 10)):
        compact, plain = encode_compact(DATA, audience), encode_envelope(DATA, audience)
        assert len(compact) * times < len(plain)


def test_a_payload() -> None:
    envelope = encode_compact(DATA, Audience(range(200)))
    message = decode_payload(b"7|2|/a$$123$$b|" + envelope)
    assert (message.channel, message.data) == ("/a|b", DATA)
    assert message.audience == Audience(range(200))


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"null",
        b"[null,null,null]",
        b"[[],null,null]",
        b"[[1],null]",
        b"[[1],null,null,null]",
        b"[[1.5],null,null]",
        b"[[true],null,null]",
        b"[[null],null,null]",
        b"[[[1]],null,null]",
        b'[{"a":1},null,null]',
        b"[[9223372036854775808],null,null]",
        b"[[1" + 5000 * b"0" + b"],null,null]",
        b"[[1],null,null] ]",
        b'[["\xff"],null,null]',
        b'[["\\ud800"],null,null]',
    ],
)
def test_no_audience_is_a_value_error(text: bytes) -> None:
    with pytest.raises(ValueError):  # noqa: PT011 - any text; callers count it and go on
        decode_envelope(b"compact:" + packed(text) + b" 1")


GOOD = packed(b"[[1,1,1,1],null,null]")


@pytest.mark.parametrize(
    "envelope",
    [
        b"compact:",
        b"compact: 1",
        b"compact:" + GOOD,
        b"compact:" + GOOD + b" ",
        b"compact:" + GOOD[:-4] + b" 1",
        b"compact:" + GOOD + GOOD + b" 1",
        b"compact:" + binascii.b2a_base64(binascii.a2b_base64(GOOD) + b"x", newline=False) + b" 1",
        b"compact:" + GOOD[:8] + b"!" + GOOD[8:] + b" 1",
        b"compact:" + GOOD[:12] + b"\xff" + GOOD[12:] + b" 1",
        b"compact:" + GOOD + b' 1},{"x":1',
        b"compact:" + GOOD + b' "\xff"',
        b"compact:" + GOOD + b" NaN",
        b"compact:" + GOOD + b" " + 100_000 * b"[",
        b"Compact:" + GOOD + b" 1",
        b" compact:" + GOOD + b" 1",
        b"compact:" + GOOD + b"\n1",
        b"custom:" + GOOD + b" 1",
    ],
)
def test_garbage_is_a_value_error(envelope: bytes) -> None:
    assert unpack_audience(GOOD) == Audience([1, 2, 3, 4])
    with pytest.raises(ValueError):  # noqa: PT011
        decode_envelope(envelope)


def test_damage_is_found() -> None:
    """A list that differs in one bit would be for somebody else."""
    text = pack_audience(Audience(range(0, 3000, 7)))
    assert text is not None
    raw = binascii.a2b_base64(text)
    for place in range(2, len(raw)):
        damaged = bytearray(raw)
        damaged[place] ^= 1 << place % 8
        with pytest.raises(ValueError):  # noqa: PT011
            unpack_audience(binascii.b2a_base64(damaged, newline=False))


def test_a_few_bytes_do_not_become_many() -> None:
    """What deflate can do in general: a thousand times its size, if it may refer to itself."""
    million = json.dumps([[1] * 1_000_000, None, None], separators=(",", ":")).encode()
    bomb = packed(million, strategy=zlib.Z_DEFAULT_STRATEGY)
    assert len(bomb) < len(million) / 100
    with pytest.raises(ValueError, match="not the whole"):
        unpack_audience(bomb)
    honest = unpack_audience(packed(million))
    assert honest.user_ids == tuple(range(1, 1_000_001))
