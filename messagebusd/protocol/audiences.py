"""Long audiences in few bytes of text: the part of the ``compact`` codec that is not the data.

Of ids that are integers only the first one is written, then by how much each differs from the one
before: of a list in ascending order that leaves small numbers. These, as JSON, go through the
Huffman half of deflate, and become ASCII by Base64. Lists come back as they were, in their order.

Without deflate's other half, the references to earlier text, the result is almost as short, and no
byte can stand for more than eight of what it was made from: a few stored bytes never become a list
that fills the memory. Adler-32, in zlib's format, finds damage.
"""

from __future__ import annotations

import binascii
import zlib
from array import array
from collections.abc import Sequence
from itertools import accumulate
from operator import sub
from typing import Annotated, Any

import msgspec

from messagebusd.protocol.message import Audience, Id

# Deflate spends at least one bit on each byte.
_LONGEST = 8
_Number = Annotated[int, msgspec.Meta(ge=-(2**63), le=2**63 - 1)]
_Part = Annotated[list[_Number | str], msgspec.Meta(min_length=1)] | None
_decode_parts = msgspec.json.Decoder(tuple[_Part, _Part, _Part]).decode


def pack_audience(audience: Audience) -> bytes | None:
    """The audience as ASCII; None for one that cannot be written so, with ids beyond 64 bits."""
    try:
        parts = [
            _differences(ids)
            for ids in (audience.user_ids, audience.group_ids, audience.client_ids)
        ]
    except OverflowError:
        return None
    deflate = zlib.compressobj(1, strategy=zlib.Z_HUFFMAN_ONLY)
    packed = deflate.compress(msgspec.json.encode(parts)) + deflate.flush()
    return binascii.b2a_base64(packed, newline=False)


def unpack_audience(text: bytes) -> Audience:
    """Read what anybody may have written; raises ValueError where it is no such text."""
    try:
        packed = binascii.a2b_base64(text, strict_mode=True)
        inflate = zlib.decompressobj()
        parts = inflate.decompress(packed, _LONGEST * len(packed) + 1)
        if not inflate.eof or inflate.unused_data:
            raise ValueError("not the whole of an audience")
        ids = [_ids(part) for part in _decode_parts(parts)]
    except (zlib.error, msgspec.DecodeError) as error:
        raise ValueError(f"no audience: {error}") from None
    if ids == [None, None, None]:
        raise ValueError("an audience of nobody in particular")
    return Audience(*ids)


def _differences(ids: Sequence[Id] | None) -> Sequence[Id] | None:
    """As they are written: text as it is, integers as differences. Raises OverflowError."""
    if ids is None or set(map(type, ids)) == {str}:
        return ids
    if set(map(type, ids)) != {int}:
        # Integers beside text are no differences; a reader knows it by the text.
        array("q", [each for each in ids if type(each) is int])
        return ids
    numbers: Sequence[Any] = ids
    differences = [numbers[0], *map(sub, numbers[1:], numbers)]
    array("q", differences)
    return differences


def _ids(part: list[int | str] | None) -> list[Any] | None:
    if part is None or set(map(type, part)) != {int}:
        return part
    numbers: list[Any] = part
    return list(accumulate(numbers))
