"""The examples of the TypeScript client's README: all compile, and those for servers run."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
from pathlib import Path

import pytest

from tests.support.hosted import HostedDaemon
from tests.support.pages import ROOT, Page
from tests.support.program import find_program

CLIENT = ROOT / "clients" / "typescript"
BLOCKS = Page("clients/typescript/README.md", __name__).blocks("ts")
# What the examples take from their surroundings.
AMBIENT = """
declare const process: { env: Record<string, string | undefined> };
declare const userId: string;
declare const body: Uint8Array;
declare const request: { headers: Record<string, string | string[] | undefined> };
declare const publisher: import("messagebusd-client/publisher").Publisher;
interface Order { number: number }
declare function load(): Promise<number>;
declare function book(order: Order): Promise<void>;
declare function save(positions: Record<string, number | null>): Promise<void>;
"""


def run(*command: str | Path, folder: Path, **env: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **env}, capture_output=True, text=True, timeout=50
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture
def application(tmp_path: Path) -> Path:
    """A folder that has the client among its packages."""
    (tmp_path / "node_modules").mkdir()
    (tmp_path / "node_modules" / "messagebusd-client").symlink_to(CLIENT)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    return tmp_path


def test_they_compile(application: Path) -> None:
    (application / "ambient.d.ts").write_text(AMBIENT)
    names = [f"example{number}.ts" for number in range(len(BLOCKS))]
    for name, block in zip(names, BLOCKS, strict=True):
        (application / name).write_text(block.text)
    run(
        *(CLIENT / "node_modules" / ".bin" / "tsc", "--noEmit", "--strict", "--skipLibCheck"),
        *("--target", "es2022", "--lib", "es2022,dom,dom.asynciterable"),
        *("--module", "nodenext", "--moduleDetection", "force", "ambient.d.ts", *names),
        folder=application,
    )


async def test_the_publisher_publishes_and_follows(application: Path) -> None:
    publishes, follows = (
        next(each.text for each in BLOCKS if words in each.text)
        for words in ("publisher.publish", "publisher.subscribe")
    )
    async with HostedDaemon(application) as daemon:
        await daemon.publish("/orders", {"number": 1})
        (application / "app.ts").write_text(
            f"""{publishes.replace("http://127.0.0.1:8091", daemon.url)}
            console.log(JSON.stringify(positions));
            const load = async () => 0;
            const book = async (order) => console.log(JSON.stringify(order));
            const save = async (reached) => process.exit(reached["/orders"] === 1 ? 0 : 1);
            {follows}"""
        )
        esbuild = CLIENT / "node_modules" / ".bin" / "esbuild"
        run(esbuild, "app.ts", "--format=esm", "--outfile=app.js", folder=application)
        node = find_program("node", "nodejs")
        printed = await asyncio.to_thread(
            run, node, "app.js", folder=application, MESSAGEBUSD_KEY=daemon.key
        )
        backlog = await daemon.api("GET", "backlog", query={"channel": "/hello"})
    assert [json.loads(line) for line in printed.splitlines()] == [{"/hello": 1}, {"number": 1}]
    assert backlog["messages"][0]["user_ids"] == [42]
