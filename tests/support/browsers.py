"""Headless Chromium and Firefox, those that are installed on this machine.

Firefox is driven by WebDriver BiDi, which is Playwright's channel for a Firefox that it did not
build itself.
"""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Literal

from playwright.async_api import Browser, Playwright, async_playwright

BrowserName = Literal["chromium", "firefox"]
_PROGRAMS: dict[BrowserName, tuple[str, ...]] = {
    "chromium": ("chromium",),
    "firefox": ("firefox-esr", "firefox"),
}
_CHROMIUM_ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)


def program(name: BrowserName) -> str:
    """Return the path of a browser."""
    for command in _PROGRAMS[name]:
        # Debian's own first: what else is on the path may be an image's wrapper.
        if path := shutil.which(command, path="/usr/bin") or shutil.which(command):
            return path
    package = _PROGRAMS[name][0]
    raise RuntimeError(f"{name} is missing and these tests need it: apt-get install {package}")


class Browsers:
    """Browsers that run from when they are first asked for until the end."""

    def __init__(self, playwright: Playwright, stack: AsyncExitStack) -> None:
        self._playwright = playwright
        self._stack = stack
        self._running: dict[BrowserName, Browser] = {}

    async def get(self, name: BrowserName) -> Browser:
        """Return a running browser; each test opens a context of its own in it."""
        if name not in self._running:
            browser = await self._launch(name)
            self._stack.push_async_callback(browser.close)
            self._running[name] = browser
        return self._running[name]

    async def _launch(self, name: BrowserName) -> Browser:
        if name == "firefox":
            return await self._playwright.firefox.launch(
                channel="moz-firefox", executable_path=program(name)
            )
        return await self._playwright.chromium.launch(
            executable_path=program(name), args=list(_CHROMIUM_ARGUMENTS)
        )


@asynccontextmanager
async def open_browsers() -> AsyncIterator[Browsers]:
    """Provide browsers, and close those that were used."""
    async with async_playwright() as playwright, AsyncExitStack() as stack:
        yield Browsers(playwright, stack)
