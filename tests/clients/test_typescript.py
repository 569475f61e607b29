"""The TypeScript client's own tests, and its package as others get it."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from pathlib import Path

import pytest

CLIENT = Path(__file__).parents[2] / "clients" / "typescript"


def run(*command: str | Path, folder: Path = CLIENT) -> str:
    """Run a program to its end and return what it wrote; fails with that."""
    done = subprocess.run(
        [str(each) for each in command],
        cwd=folder,
        check=False,
        capture_output=True,
        text=True,
        env={**os.environ, "NO_COLOR": "1", "npm_config_update_notifier": "false"},
    )
    if done.returncode:
        pytest.fail(f"{' '.join(map(str, command))}:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def test_its_own_tests() -> None:
    run("npm", "test")


@pytest.fixture(scope="module")
def application(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A clean folder that has installed the package from its artefact."""
    folder = tmp_path_factory.mktemp("application")
    [packed] = json.loads(run("npm", "pack", "--json", "--pack-destination", folder))
    (folder / "package.json").write_text('{"type":"module","private":true}')
    offline = ("--offline", "--no-audit", "--no-fund")
    run("npm", "install", *offline, folder / packed["filename"], folder=folder)
    return folder


def test_the_package_has_what_it_needs_and_no_more(application: Path) -> None:
    package = application / "node_modules" / "messagebusd-client"
    assert (package / "LICENSE").is_file()
    assert (package / "README.md").is_file()
    assert [each.name for each in package.iterdir() if each.is_dir()] == ["dist"]
    assert "dependencies" not in json.loads((package / "package.json").read_text())
    assert len(list((application / "node_modules").glob("[a-z]*"))) == 1


def test_the_package_in_node(application: Path) -> None:
    (application / "app.js").write_text(
        """
        import * as client from "messagebusd-client";
        import { sharedConnection } from "messagebusd-client/sharing";
        import { Publisher } from "messagebusd-client/publisher";
        import { WebhookVerifier } from "messagebusd-client/webhook";
        import { readFileSync } from "node:fs";
        const classic = new URL(import.meta.resolve("messagebusd-client/classic/message-bus.js"));
        const bus = new client.MessageBus({connect: sharedConnection()});
        new Publisher({url: "http://127.0.0.1:1"});
        new WebhookVerifier("a secret");
        console.log(JSON.stringify([Object.keys(client).sort(), bus.status(),
            readFileSync(classic).length > 1000]));
        """
    )
    exported, status, has_classic = json.loads(run("node", "app.js", folder=application))
    assert status == "stopped"
    assert has_classic
    assert exported == [
        *("CallbackError", "HttpError", "MessageBus", "MessageBusError", "NetworkError"),
        *("ProtocolError", "RateLimitError", "TokenError"),
        *("ajaxTransport", "fetchTransport", "xhrTransport"),
    ]


@pytest.mark.parametrize("resolution", ["nodenext", "bundler"])
def test_the_package_is_typed(application: Path, resolution: str) -> None:
    (application / "app.ts").write_text(
        """
        import { MessageBus, type Gap } from "messagebusd-client";
        import { sharedConnection } from "messagebusd-client/sharing";
        import { Publisher } from "messagebusd-client/publisher";
        const bus = new MessageBus({ connect: sharedConnection() });
        bus.subscribe("/a", (data: { text: string }) => data.text, {
          onGap: (gap: Gap): number => gap.after,
        });
        const published = await new Publisher({ url: "" }).publish("/a", 1);
        published.channel satisfies string;
        // @ts-expect-error
        bus.callbackInterval = "soon";
        """
    )
    module = "nodenext" if resolution == "nodenext" else "esnext"
    run(
        *(CLIENT / "node_modules" / ".bin" / "tsc", "--noEmit", "--strict", "--skipLibCheck"),
        *("--target", "es2022", "--lib", "es2022,dom"),
        *("--module", module, "--moduleResolution", resolution, "app.ts"),
        folder=application,
    )


@pytest.mark.parametrize(
    ("source", "has", "has_not"),
    [
        ('export { MessageBus } from "messagebusd-client"', "dlp=t", "BroadcastChannel"),
        (
            'export { sharedConnection } from "messagebusd-client/sharing"',
            "BroadcastChannel",
            "api/v1",
        ),
        ('export { Publisher } from "messagebusd-client/publisher"', "api/v1", "dlp=t"),
        ('export { HttpError } from "messagebusd-client"', "retryAfter", "dlp=t"),
    ],
)
def test_a_bundle_has_only_what_it_uses(
    application: Path, source: str, has: str, has_not: str
) -> None:
    (application / "bundled.js").write_text(source)
    esbuild = CLIENT / "node_modules" / ".bin" / "esbuild"
    bundle = run(esbuild, "--bundle", "--format=esm", "bundled.js", folder=application)
    assert has in bundle
    assert has_not not in bundle


def test_the_sizes_in_its_readme() -> None:
    assert shutil.which("node")
    readme = (CLIENT / "README.md").read_text()
    for row in run("node", "size.mjs").splitlines()[2:]:
        name = row.split("|")[1].strip()
        measured = [float(each) for each in re.findall(r"([\d.]+) kB", row)]
        [said] = [line for line in readme.splitlines() if line.startswith(f"| {name} |")]
        written = [float(each) for each in re.findall(r"([\d.]+) kB", said)]
        # Compilers differ by a little.
        assert measured == pytest.approx(written, rel=0.05), name
