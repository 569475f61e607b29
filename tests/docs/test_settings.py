"""Settings that pages show are settings, and so are those that they name."""

from __future__ import annotations

import re
import secrets
from pathlib import Path

import pytest
from cryptography.fernet import Fernet

from messagebusd.metrics import Metrics
from messagebusd.settings import Settings
from messagebusd.settings.keys import keys_of
from tests.support.pages import Block, Page, all_pages
from tests.support.shipped import check_config

PAGES = list(all_pages(__name__))
BLOCKS = [block for page in PAGES for block in page.blocks("toml")]
FILTER = Page("docs/channels.md", __name__).block("python", "def allow")
CODEC = Page("docs/operations.md", __name__).block("python", "def encode")

_SECRET_FILE = re.compile(r'"(/etc/messagebusd/[\w./-]+)"')
KEYS = {".".join(key.path) for key in keys_of(Settings)}
# Names of files and hosts look like keys.
_NO_KEYS = re.compile(r"\.(toml|md|js|conf|service|socket|sh|example)$")


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_check_config_accepts_it(
    block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def here(found: re.Match[str]) -> str:
        path = tmp_path / Path(found[1]).name
        path.write_text(f"whsec_{secrets.token_hex(32)}")
        return f'"{path}"'

    # What a filter and a codec name stands on the same page.
    (tmp_path / "forum_filters").mkdir()
    (tmp_path / "forum_filters" / "chat.py").write_text(FILTER.text)
    (tmp_path / "forum_codec.py").write_text(CODEC.text)
    monkeypatch.setenv("FORUM_CODEC_KEY", Fernet.generate_key().decode())
    monkeypatch.syspath_prepend(tmp_path)
    path = tmp_path / "bus.toml"
    path.write_text(_SECRET_FILE.sub(here, block.text))
    check_config(path, {})


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_keys_that_are_named_exist(page: Page) -> None:
    sections = "|".join({name.partition(".")[0] for name in KEYS if "." in name})
    named = set(re.findall(rf"`((?:{sections})(?:\.[a-z_]+)+)", page.text))
    named -= {name for name in named if _NO_KEYS.search(name)}
    sections_named = {name for name in named if any(key.startswith(f"{name}.") for key in KEYS)}
    assert named - sections_named <= KEYS, named - sections_named - KEYS
    variables = {
        name.lower().replace("__", ".") for name in re.findall(r"MESSAGEBUSD_(\w+__\w+)", page.text)
    }
    assert variables <= KEYS | {f"{key}_file" for key in KEYS}, variables - KEYS


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_metrics_that_are_named_exist(page: Page) -> None:
    told = Metrics().render().decode()
    for name in set(re.findall(r"\b(messagebusd_[a-z_]+)", page.text)):
        plain = re.sub(r"_(bucket|count|sum)$", "", name)
        assert f"# TYPE {name} " in told or f"# TYPE {plain} histogram" in told, name


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Page) -> None:
    folder = Path(page.name).parent
    for link, anchor in re.findall(r"\]\(((?!https?:)[^)#\s]*)(?:#([^)]*))?\)", page.text):
        target = Path(folder, link) if link else Path(page.name)
        root = Path(__file__).parents[2]
        assert (root / target).exists(), link
        if anchor:
            assert anchor in _anchors((root / target).read_text()), f"{link}#{anchor}"


def _anchors(text: str) -> set[str]:
    """What headings are called in links, as GitHub does it."""
    headings = re.findall(r"^#+ (.*)$", text, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", each.lower()).replace(" ", "-") for each in headings}
