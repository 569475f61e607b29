"""The header, and what the store knows a request by; the stores' part is in tests/backends."""

from __future__ import annotations

import pytest
from aiohttp.test_utils import make_mocked_request
from multidict import CIMultiDict

from messagebusd.errors import MalformedRequest
from messagebusd.http.idempotency import OnceOnly, idempotency_key


def request(*keys):
    return make_mocked_request(
        "POST", "/", headers=CIMultiDict([("Idempotency-Key", key) for key in keys])
    )


def test_the_key_is_read_from_the_header():
    assert idempotency_key(request()) is None
    assert idempotency_key(request("order 1")) == "order 1"


@pytest.mark.parametrize("keys", [("",), ("a", "b"), ("x" * 256,), ("\u00e4",), ("a\tb",)])
def test_unusable_keys_are_refused(keys):
    with pytest.raises(MalformedRequest):
        idempotency_key(request(*keys))


FIRST = OnceOnly("forum", "publish", "k", b"body")


@pytest.mark.parametrize(
    "other",
    [
        OnceOnly("blog", "publish", "k", b"body"),
        OnceOnly("forum", "batch", "k", b"body"),
        OnceOnly("forum", "publish", "l", b"body"),
        OnceOnly("forump", "ublish", "k", b"body"),
    ],
)
def test_a_slot_belongs_to_caller_call_and_key(other):
    assert other.whole.slot != FIRST.whole.slot
    assert other.whole.fingerprint == FIRST.whole.fingerprint


def test_the_body_is_the_fingerprint():
    other = OnceOnly("forum", "publish", "k", b"another")
    assert other.whole.slot == FIRST.whole.slot
    assert other.whole.fingerprint != FIRST.whole.fingerprint


def test_each_message_of_a_batch_has_its_own_slot():
    slots = {FIRST.whole.slot, FIRST.message(0).slot, FIRST.message(1).slot}
    assert len(slots) == 3
    assert FIRST.message(0).fingerprint == FIRST.whole.fingerprint
