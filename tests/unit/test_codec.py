"""``backend.codec``: the classes that it may name, and what surrounds them."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

import pytest

from messagebusd.backends import open_backend
from messagebusd.backends.codec import CUSTOM, load_codec
from messagebusd.errors import ConfigurationError, StoreRefused
from messagebusd.metrics import Metrics
from messagebusd.protocol.message import Audience
from messagebusd.protocol.stored import (
    COMPACTING,
    JSON,
    encode_compact,
    encode_envelope,
)
from messagebusd.settings.backend import BackendSettings
from tests.unit.test_cli import run


class Plain:
    """As simple as it can be."""

    def encode(self, data: bytes, *lists: Any) -> str:
        return json.dumps([data.decode(), *lists])

    def decode(self, text: str) -> Any:
        data, *lists = json.loads(text)
        return data.encode(), *lists


class Sorting(Plain):
    """Keeps everybody, but not their order."""

    def encode(self, data: bytes, *lists: Any) -> str:
        return super().encode(data, *(ids and sorted(ids, key=str) for ids in lists))


class Naughty(Plain):
    """Does right until it is told otherwise."""

    answer: Any = None

    def encode(self, data: bytes, *lists: Any) -> str:
        return self._or(super().encode(data, *lists))

    def decode(self, text: str) -> Any:
        return self._or(super().decode(text))

    def _or(self, right: Any) -> Any:
        if isinstance(self.answer, Exception):
            raise self.answer
        return right if self.answer is None else self.answer


class NeedsArguments(Plain):
    def __init__(self, key: str) -> None:
        self.key = key


class OnlyEncodes:
    encode = Plain.encode


class Waits(Plain):
    async def decode(self, text: str) -> Any:
        return super().decode(text)


class Fails(Plain):
    def decode(self, text: str) -> Any:
        raise KeyError("of a sample")


class Forgets(Plain):
    def decode(self, text: str) -> Any:
        return super().decode(text)[0], None, None, None


class Reformats(Plain):
    def decode(self, text: str) -> Any:
        data, *lists = super().decode(text)
        return json.dumps(json.loads(data)).encode(), *lists


not_a_class = Plain()

TO_SOME = Audience([1, "1", -1], None, ["c"])


def test_the_names_that_are_built_in() -> None:
    assert load_codec("json") is JSON
    assert load_codec("compact") is COMPACTING
    assert BackendSettings().codec == "json"


@pytest.mark.parametrize("name", ["Plain", "Sorting"])
@pytest.mark.parametrize("audience", [None, TO_SOME])
def test_a_class_of_ones_own(name: str, audience: Audience | None) -> None:
    codec = load_codec(f"{__name__}:{name}")
    envelope = codec.encode(b'{"a": "\xc3\xa4|"}', audience)
    assert envelope.startswith(CUSTOM)
    data, found = codec.decode(envelope)
    assert data == b'{"a": "\xc3\xa4|"}'
    assert (found is None) == (audience is None)
    if found is not None:
        assert (found.users, found.clients) == (TO_SOME.users, TO_SOME.clients)


def test_what_others_wrote_is_read_all_the_same() -> None:
    many = Audience(range(500))
    for name in ("json", "compact", f"{__name__}:Plain"):
        decode = load_codec(name).decode
        assert decode(encode_envelope(b"1", TO_SOME)) == (b"1", TO_SOME)
        assert decode(encode_compact(b"1", many)) == (b"1", many)


def test_nobody_else_reads_a_codecs_text() -> None:
    """Not even one that looks like another form, which would be for everybody."""
    envelope = load_codec(f"{__name__}:Plain").encode(b"1", TO_SOME)
    for codec in (JSON, COMPACTING):
        with pytest.raises(ValueError, match="not an envelope"):
            codec.decode(envelope)


@pytest.mark.parametrize(
    ("name", "problem"),
    [
        ("no_such_module:Codec", "cannot be imported: No module named 'no_such_module'"),
        (f"{__name__}:NoSuchClass", "cannot be imported"),
        (f"{__name__}:not_a_class", "is not a class"),
        (f"{__name__}:NeedsArguments", "cannot be made"),
        (f"{__name__}:OnlyEncodes", "has no method decode"),
        (f"{__name__}:Waits", "decode must be a plain method, not async"),
        (f"{__name__}:Fails", "fails with a sample: KeyError"),
        (f"{__name__}:Forgets", "does not give a sample back as it was"),
        (f"{__name__}:Reformats", "does not give a sample back as it was"),
    ],
)
def test_classes_that_cannot_be_used(name: str, problem: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^backend.codec: {name}.*{problem}"):
        load_codec(name)


def test_a_store_is_not_opened_with_one() -> None:
    for kind in ("redis", "postgres"):
        settings = BackendSettings(kind=kind, codec="no_such_module:Codec")
        with pytest.raises(ConfigurationError, match=r"^backend\.codec: "):
            open_backend(settings, Metrics())


@pytest.mark.parametrize(
    "answer",
    [
        ValueError("secret"),
        RecursionError("secret"),
        MemoryError(),
        b"bytes",
        7,
        "with \0",
        "\ud800",
        ("a", "b"),
    ],
    ids=repr,
)
def test_a_publish_that_it_fails_at_is_refused(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    codec = load_codec(f"{__name__}:Naughty")
    monkeypatch.setattr(Naughty, "answer", answer)
    for _ in range(2):
        with pytest.raises(StoreRefused) as caught:
            codec.encode(b'"secret"', TO_SOME)
        assert "secret" not in str(caught.value)
    [record] = caplog.records
    assert (record.levelno, record.codec, record.method) == (  # type: ignore[attr-defined]
        logging.ERROR,
        f"{__name__}:Naughty",
        "encode",
    )
    assert "secret" not in str(vars(record))


@pytest.mark.parametrize(
    "answer",
    [
        KeyError("secret"),
        RecursionError("secret"),
        7,
        "secret",
        (),
        (b"1",),
        (b"1", None, None),
        (b"1", None, None, None, None),
        [b"1", None, None, None],
        ("1", None, None, None),
        (None, None, None, None),
        (b"secret", None, None, None),
        (b'1},{"a":1', None, None, None),
        (b"", None, None, None),
        (b'"\xff"', None, None, None),
        (b"1", [], None, None),
        (b"1", None, (), None),
        (b"1", "77", None, None),
        (b"1", {7: 7}, None, None),
        (b"1", [True], None, None),
        (b"1", [1.0], None, None),
        (b"1", [None], None, None),
        (b"1", 7, None, None),
        (b"1", None, None, [b"c"]),
    ],
    ids=repr,
)
def test_what_it_fails_to_read_is_nobodys(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, answer: Any
) -> None:
    codec = load_codec(f"{__name__}:Naughty")
    envelope = codec.encode(b"1", TO_SOME)
    monkeypatch.setattr(Naughty, "answer", answer)
    for _ in range(2):
        with pytest.raises(ValueError) as caught:  # noqa: PT011
            codec.decode(envelope)
        assert "secret" not in str(caught.value)
    [record] = caplog.records
    assert record.method == "decode"  # type: ignore[attr-defined]
    assert "secret" not in str(vars(record))


def test_text_that_is_no_text_does_not_reach_it() -> None:
    codec = load_codec(f"{__name__}:Plain")
    for envelope in (CUSTOM, CUSTOM + b"\xff", CUSTOM + b"[", CUSTOM + b"[" * 100_000, b"", b"x"):
        with pytest.raises(ValueError):  # noqa: PT011
            codec.decode(envelope)


@pytest.mark.parametrize(
    ("lines", "problem"),
    [
        (
            'kind = "redis"\ncodec = "zip"',
            '{path}:3: backend.codec must be "json", "compact" or "package.module:Codec"; '
            'got "zip"',
        ),
        (
            'kind = "redis"\ncodec = "no_such_module:Codec"',
            "backend.codec: no_such_module:Codec cannot be imported: "
            "No module named 'no_such_module'",
        ),
        (
            'kind = "postgres"\ncodec = "json:dumps"',
            "backend.codec: json:dumps is not a class",
        ),
        (
            'codec = "compact"',
            '{path}:2: backend.codec must be "json" where backend.kind is "memory", '
            "which encodes nothing",
        ),
    ],
)
def test_check_config_names_the_key(tmp_path: Path, lines: str, problem: str) -> None:
    path = tmp_path / "bus.toml"
    path.write_text(f"[backend]\n{lines}\n")
    result = run("check-config", "--config", str(path))
    assert (result.exit_code, result.stderr) == (1, problem.format(path=path) + "\n")


def test_check_config_takes_those_that_can_be_used(tmp_path: Path) -> None:
    path = tmp_path / "bus.toml"
    for name in ("json", "compact", f"{__name__}:Plain"):
        path.write_text(f'[backend]\nkind = "redis"\ncodec = "{name}"\n')
        result = run("check-config", "--config", str(path))
        assert (result.exit_code, result.output) == (0, f"ok {path}\n")
