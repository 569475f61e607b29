"""The configured codec, ``backend.codec`` (SPEC 8), and what surrounds one of the operator's own.

Such a class (`Codec`) is trusted to be quick, but not to be right: what it raises or returns by
mistake makes a message that is refused or passed over, never one that others can see. Its text is
stored after ``custom:``, so that nobody takes it for another form, nor is it handed one.
"""

from __future__ import annotations

import inspect
import logging
import traceback
from collections.abc import Sequence
from typing import Any, Protocol

from messagebusd.errors import ConfigurationError, StoreRefused
from messagebusd.named import load_named
from messagebusd.protocol.message import Audience, is_id
from messagebusd.protocol.stored import (
    COMPACTING,
    JSON,
    EnvelopeCodec,
    check_data,
    decode_envelope,
)

CUSTOM = b"custom:"
_KEY = "backend.codec"
# What a codec is tried with at start.
_SAMPLES: Sequence[tuple[bytes, Audience | None]] = (
    (b'{"text":"\xc3\xa4 \\" | \\u0000"}', None),
    (b"[1,2.50]", Audience([7, "7", -1], [2**40], ["0123abcd"])),
)

Ids = Sequence[int | str]
Parts = tuple[bytes, Ids | None, Ids | None, Ids | None]

_EVERYBODY = Audience()

_log = logging.getLogger(__name__)


class Codec(Protocol):
    """What ``package.module:Codec`` has to be: a class that is made without arguments, once for
    each process.

    Both methods run on the event loop, for each message: they must be quick, and wait for nothing.
    """

    def encode(
        self,
        data: bytes,
        user_ids: Ids | None,
        group_ids: Ids | None,
        client_ids: Ids | None,
    ) -> str:
        """The text that is stored; without NUL characters. ``data`` is JSON as it was published,
        and None is no restriction. Whatever it raises refuses the publish."""

    def decode(self, text: str) -> Parts:
        """The four that made the text, and were perhaps made by another node's codec, or by
        somebody who should not. Whatever it raises has the message counted and passed over."""


def load_codec(name: str) -> EnvelopeCodec:
    """The codec of this name. Raises ConfigurationError."""
    if name == "json":
        return JSON
    if name == "compact":
        return COMPACTING
    guarded = _Guarded(name, _make(name))
    guarded.prove()
    return EnvelopeCodec(guarded.encode, guarded.decode)


def _make(name: str) -> Codec:
    """An instance of the class. Raises ConfigurationError."""
    made = load_named(name, _KEY)
    if not inspect.isclass(made):
        raise ConfigurationError([f"{_KEY}: {name} is not a class"])
    try:
        codec: Any = made()
    except Exception as error:
        raise ConfigurationError([f"{_KEY}: {name} cannot be made: {error}"]) from error
    for method in ("encode", "decode"):
        found = getattr(codec, method, None)
        if not callable(found):
            raise ConfigurationError([f"{_KEY}: {name} has no method {method}"])
        if inspect.iscoroutinefunction(found):
            raise ConfigurationError([f"{_KEY}: {name}.{method} must be a plain method, not async"])
    made_codec: Codec = codec
    return made_codec


class _Unusable(Exception):
    """What a codec returned, in words that quote nothing of it."""


class _Guarded:
    """A codec of the operator's, as `EnvelopeCodec` promises it."""

    def __init__(self, name: str, codec: Codec) -> None:
        self._name = name
        self._codec = codec
        self._logged: set[str] = set()

    def prove(self) -> None:
        """Raise ConfigurationError unless messages come back as they were."""
        for data, audience in _SAMPLES:
            try:
                found, found_audience = self._read(self._write(data, audience))
            except Exception as error:
                problem = f"{_KEY}: {self._name} fails with a sample: {error!r}"
                raise ConfigurationError([problem]) from error
            if found != data or _members(found_audience) != _members(audience):
                raise ConfigurationError(
                    [f"{_KEY}: {self._name} does not give a sample back as it was"]
                )

    def encode(self, data: bytes, audience: Audience | None) -> bytes:
        """See `EnvelopeCodec`."""
        try:
            return self._write(data, audience)
        except Exception as error:
            self._note("encode", error)
            raise StoreRefused("the codec cannot encode this message") from None

    def decode(self, envelope: bytes) -> tuple[bytes, Audience | None]:
        """See `EnvelopeCodec`."""
        if not envelope.startswith(CUSTOM):
            return decode_envelope(envelope)
        try:
            return self._read(envelope)
        except Exception as error:
            self._note("decode", error)
            raise ValueError("the codec cannot decode it") from None

    def _write(self, data: bytes, audience: Audience | None) -> bytes:
        to = audience or _EVERYBODY
        text: Any = self._codec.encode(data, to.user_ids, to.group_ids, to.client_ids)
        if not isinstance(text, str):
            raise _Unusable(f"encode returned {type(text).__name__}, not str")
        if "\0" in text:
            raise _Unusable("encode returned a NUL character")
        return CUSTOM + text.encode()

    def _read(self, envelope: bytes) -> tuple[bytes, Audience | None]:
        parts: Any = self._codec.decode(envelope.removeprefix(CUSTOM).decode())
        if not isinstance(parts, tuple) or len(parts) != 4 or type(parts[0]) is not bytes:
            raise _Unusable("decode did not return bytes and three of a list or None")
        data, *lists = parts
        for ids in lists:
            # An empty list would be for nobody, or by a mistake for everybody.
            if ids is not None and not (
                isinstance(ids, list | tuple) and ids and all(map(is_id, ids))
            ):
                raise _Unusable("decode returned a list that is empty or not of int and str")
        return check_data(data), None if lists == [None, None, None] else Audience(*lists)

    def _note(self, method: str, error: Exception) -> None:
        """Log the first failure of a method."""
        if method not in self._logged:
            self._logged.add(method)
            _log.error(
                "the codec failed",
                extra={"codec": self._name, "method": method, "reason": _describe(error)},
            )


def _members(audience: Audience | None) -> tuple[object, ...]:
    """For whom it is: a codec may keep lists in another order."""
    to = audience or _EVERYBODY
    return (to.users, to.groups, to.clients)


def _describe(error: Exception) -> str:
    """Without its text, which may quote what was published."""
    if isinstance(error, _Unusable):
        return str(error)
    *_, (frame, line) = traceback.walk_tb(error.__traceback__)
    return f"{type(error).__name__} at {frame.f_code.co_filename}:{line}"
