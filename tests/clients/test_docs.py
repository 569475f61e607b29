"""The clients' references are built from their sources, and leave nothing out."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

# Three compilers in a row, on a machine that may be loaded.
pytestmark = pytest.mark.timeout(240)

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def docs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where they were built; whatever is undocumented fails."""
    folder = tmp_path_factory.mktemp("docs")
    command = ["make", "--old-file=install", "clients-docs", f"DOCS={folder}"]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return folder


@pytest.mark.parametrize(
    ("page", "words"),
    [
        ("typescript/classes/index.MessageBus.html", "importPositions"),
        ("typescript/classes/publisher.Publisher.html", "subscribeAll"),
        ("python/messagebus_client.html", "WebhookVerifier"),
        ("ruby/Messagebusd/Client.html", "subscribe_all"),
    ],
)
def test_references(docs: Path, page: str, words: str) -> None:
    assert words in (docs / page).read_text()
