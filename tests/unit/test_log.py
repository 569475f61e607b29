"""Log lines, for people and for machines."""

from __future__ import annotations

import json
import logging
import re
import warnings
from collections.abc import Iterator
from typing import Any

import pytest

from messagebusd.log import configure_logging, request_id

logger = logging.getLogger("messagebusd.tests")


@pytest.fixture(autouse=True)
def _restore_logging() -> Iterator[None]:
    root, access = logging.getLogger(), logging.getLogger("aiohttp.access")
    handlers, level, access_level = root.handlers[:], root.level, access.level
    yield
    logging.captureWarnings(False)
    root.handlers[:] = handlers
    root.setLevel(level)
    access.setLevel(access_level)


def json_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_text(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text")
    logger.info("listening", extra={"listener": "public", "address": "http://127.0.0.1:8090"})
    line = capsys.readouterr().err
    time, rest = line.split(" ", 1)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", time)
    assert rest == (
        "INFO    messagebusd.tests listening listener=public address=http://127.0.0.1:8090\n"
    )


def test_text_quotes_values_that_are_not_one_word(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text")
    logger.info(
        "x", extra={"a": "two words", "b": 'say "a"', "c": "", "d": "e=f", "g": "ü", "h": 7}
    )
    assert capsys.readouterr().err.endswith(
        ' x a="two words" b="say \\"a\\"" c="" d="e=f" g=ü h=7\n'
    )


@pytest.mark.parametrize("evil", ["\r\nINFO x", "\x1b[2J", "\x7f", "\x9b2J", "\u2028", "\x00"])
def test_text_escapes_control_characters(capsys: pytest.CaptureFixture[str], evil: str) -> None:
    configure_logging("info", "text")
    try:
        raise ValueError(f"a{evil}b")
    except ValueError:
        logger.exception(f"c{evil}d", extra={"field": f"e{evil}f", f"g{evil}h": 1})
    output = capsys.readouterr().err
    assert not re.search("[\x00-\x09\x0b-\x1f\x7f-\x9f\u2028]", output)
    first, *others = output.splitlines()
    assert "c\\" in first
    assert "e\\" in first
    assert "g\\" in first
    assert all(line.startswith("  | ") for line in others)


def test_json(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    logger.warning("slow %s", "client", extra={"bytes": 7, "channel": "/ü\n", "none": None})
    [line] = json_lines(capsys)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("time"))
    assert line == {
        "level": "warning",
        "logger": "messagebusd.tests",
        "message": "slow client",
        "bytes": 7,
        "channel": "/ü\n",
        "none": None,
    }


def test_json_is_one_line_whatever_the_fields(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    cycle: list[object] = []
    cycle.append(cycle)
    fields = {
        "nan": float("nan"),
        "cycle": cycle,
        "tuple_key": {(1, 2): 3},
        "object": object(),
        "surrogate": "\ud800",
        "line": "\u2028\r\n",
        "level": "taken",
    }
    for name, value in fields.items():
        logger.info("x", extra={name: value})
    lines = json_lines(capsys)
    assert len(lines) == len(fields)
    assert {line["message"] for line in lines} == {"x"}
    assert {line["level"] for line in lines} == {"info"}
    assert lines[0]["nan"] == "nan"


def test_json_has_the_exception_in_one_member(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("failed")
    logger.info("here", stack_info=True)
    failed, here = json_lines(capsys)
    assert failed["message"] == "failed"
    assert failed["exception"].startswith("Traceback (most recent call last):\n")
    assert failed["exception"].endswith("ValueError: broken")
    assert "test_json_has_the_exception_in_one_member" in here["exception"]


def test_request_id_is_there_while_it_is_set(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    token = request_id.set("abc")
    logger.info("during")
    logger.info("own", extra={"request_id": "def"})
    request_id.reset(token)
    logger.info("after")
    during, own, after = json_lines(capsys)
    assert during["request_id"] == "abc"
    assert own["request_id"] == "def"
    assert "request_id" not in after


def test_levels(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("warning", "json")
    logger.info("no")
    logger.warning("yes")
    configure_logging("debug", "json")
    logger.debug("yes")
    logging.getLogger("aiohttp.access").info("no")
    logging.getLogger("aiohttp.access").warning("yes")
    assert [line["message"] for line in json_lines(capsys)] == ["yes"] * 3


def test_configuring_again_replaces(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "text")
    configure_logging("info", "json")
    logger.info("once")
    assert [line["message"] for line in json_lines(capsys)] == ["once"]


def test_some_fields_stand_on_every_line(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json", worker=2)
    logger.info("ours")
    logger.info("of another", extra={"worker": 3})
    configure_logging("info", "text", worker=2)
    logger.info("text", extra={"a": 1})
    *lines, text = capsys.readouterr().err.splitlines()
    assert [json.loads(line)["worker"] for line in lines] == [2, 3]
    assert text.endswith(" text worker=2 a=1")


def test_warnings_are_lines_too(capsys: pytest.CaptureFixture[str]) -> None:
    configure_logging("info", "json")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(False)
        logging.captureWarnings(True)
        warnings.warn("old", UserWarning, stacklevel=1)
    [line] = json_lines(capsys)
    assert line["logger"] == "py.warnings"
    assert "old" in line["message"]
