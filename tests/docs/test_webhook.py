"""What pages show of the webhook is what the daemon sends, and what it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import aiohttp
import pytest
from aiohttp import web

from tests.support.host_application import application, config, poll
from tests.support.hosted import HostedDaemon
from tests.support.pages import Block, Page

HOSTS = Page("docs/hosts/README.md", __name__)
ANSWER = HOSTS.block("json", '"user_id"')
QUESTIONS = [
    Page("docs/lookups.md", __name__).block("json", '"client_id"'),
    HOSTS.block("json", '"client_id"'),
]
FILTER = Page("docs/channels.md", __name__).block("python", "def allow")


@pytest.mark.parametrize("block", QUESTIONS, ids=str)
async def test_the_question(tmp_path: Path, block: Block) -> None:
    """The same fields in the same order, and what the visitor's request says of them."""
    asked: list[dict[str, Any]] = []

    async def answer(request: web.Request) -> Any:
        asked.append(json.loads(await request.text()))
        return json.loads(ANSWER.text)

    shown = json.loads(block.text)
    headers = {"Host": shown["host"], **shown["headers"]}
    async with application(answer) as url, HostedDaemon(tmp_path, config(url)) as daemon:
        await daemon.publish("/a", "for 42", user_ids=[42])
        await daemon.publish("/a", "for group 7", group_ids=[7])
        target = f"{daemon.url}{shown['path'].replace('…', '')}?{shown['query']}"
        async with (
            aiohttp.ClientSession() as session,
            session.post(target, json={"/a": 0}, headers=headers) as stream,
        ):
            first = await stream.content.readuntil(b"|\r\n")
    received = json.loads(first.removesuffix(b"\r\n|\r\n"))
    assert [each["data"] for each in received] == ["for 42", "for group 7"]
    [question] = asked
    assert list(question) == list(shown)
    for name in ("client_id", "method", "path", "query", "host"):
        assert question[name] == shown[name].replace("…", ""), name
    assert shown["headers"].items() <= question["headers"].items()


async def test_the_function_that_filters(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "filter_of_the_page.py").write_text(FILTER.text)
    monkeypatch.syspath_prepend(tmp_path)
    filters = [{"channel_prefix": "/chat/", "callable": "filter_of_the_page:allow"}]
    async with HostedDaemon(tmp_path, {"filters": filters}) as daemon:
        await daemon.publish("/chat/1", {"hidden": True})
        await daemon.publish("/chat/1", {"hidden": False})
        answer = json.loads((await poll(daemon, {"/chat/1": 0})).body)
    assert [each["message_id"] for each in answer if each["channel"] == "/chat/1"] == [2]
