"""docs/http-api.md: its commands run in their order against one daemon, and answer as it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from tests.docs.shell import Command, Ran, Shell, commands
from tests.support.api import DOCUMENT
from tests.support.hosted import HostedDaemon
from tests.support.pages import Block, Page

PAGE = Page("docs/http-api.md", __name__)
BLOCKS = PAGE.blocks("sh", "json")
# What differs from one daemon to the next, and from the order in which the page is read.
CHANGING = {
    *("request_id", "version", "uptime", "age"),
    *("backlog_size", "backlog_bytes", "disconnected"),
}
# Its answer depends on what happened before: tests/docs/test_operations.py has some happen.
EXPLAIN = "GET /api/v1/explain"
# A subscription does not end by itself.
FOLLOW_SECONDS = 1
ENDED_BY_TIMEOUT = 124
_CALL = re.compile(r"(GET|POST|DELETE) (/api/v1/[\w/.]+)")


@pytest.fixture
async def ran(tmp_path: Path) -> dict[Block, Ran]:
    asked = [each for block in BLOCKS if block.language == "sh" for each in commands(block)]
    limited = f"timeout {FOLLOW_SECONDS} curl -N"
    asked = [Command(each.block, each.text.replace("curl -N", limited), None) for each in asked]
    async with HostedDaemon(tmp_path) as daemon:
        return {each.command.block: each for each in await Shell(tmp_path, daemon).run(asked)}


def shape(value: Any) -> Any:
    """A value of an answer, without what changes; keys keep their order."""
    match value:
        case dict():
            return [(name, name in CHANGING or shape(each)) for name, each in value.items()]
        case list():
            return [shape(each) for each in value]
    return value


async def test_the_commands_answer_as_shown(ran: dict[Block, Ran]) -> None:
    compared = 0
    for block, following in zip(BLOCKS, [*BLOCKS[1:], None], strict=True):
        if block.language != "sh":
            continue
        done = ran[block]
        follows = "-N" in block.text
        assert done.status == (ENDED_BY_TIMEOUT if follows else 0), f"{block}: {done.printed}"
        if follows:
            lines = [json.loads(each) for each in done.printed.splitlines() if each]
            assert all("data" in each for each in lines), f"{block}: {done.printed}"
        elif following and following.language == "json" and following.heading == block.heading:
            shown, printed = json.loads(following.text), json.loads(done.printed)
            if block.heading == EXPLAIN:
                assert list(printed) == list(shown), f"{block}: {done.printed}"
                continue
            assert shape(printed) == shape(shown), f"{block}: {done.printed}"
            compared += 1
        elif "DELETE" in block.text or not done.printed:
            assert done.printed == "", block
        else:
            body = done.printed.partition("\r\n\r\n")[2] or done.printed
            assert "code" not in json.loads(body), f"{block}: {done.printed}"
    assert compared >= 6


def schema_of(block: Block) -> dict[str, Any]:
    """What the description says of an answer that stands below a call's name."""
    if block.heading == "Errors":
        return {"$ref": "#/components/schemas/Problem"}
    if block.heading == "Reading":
        return {"$ref": "#/components/schemas/Message"}
    if block.heading == "What comes":
        return {"$ref": "#/components/schemas/SubscriptionLine"}
    calls = _CALL.findall(block.heading)
    assert calls, block
    answers = [
        DOCUMENT["paths"][path][method.lower()]["responses"]["200"] for method, path in calls
    ]
    return {"anyOf": [each["content"]["application/json"]["schema"] for each in answers]}


@pytest.mark.parametrize("block", [each for each in BLOCKS if each.language == "json"], ids=str)
def test_answers_are_as_described(block: Block) -> None:
    schema = {**schema_of(block), "components": DOCUMENT["components"]}
    for document in block.text.split("\n\n"):
        Draft202012Validator(schema).validate(json.loads(document))
