"""Which tests run in which browser.

Everything runs in Chromium. Firefox runs what a browser can do differently: transports, what it
does when a network goes, tabs and workers, cookies and preflights, and the original as it is; and
not every way and mode of it again, because each costs a second. What it does not run:

- What looks into the bodies of requests, or at preflights: WebDriver BiDi, by which Firefox is
  driven, does not tell them.
- The admin page and the demo, which are pages like any other.

Hidden tabs are real in Firefox, which hides a page when another tab is opened before it. Chromium,
when it is driven, takes every page to be shown: there the page is told that it is hidden.
"""

from __future__ import annotations

import pytest

in_every_browser = pytest.mark.parametrize("browser_name", ["chromium", "firefox"])
every_way = pytest.mark.parametrize(
    ("browser_name", "way"),
    [("chromium", "straight"), ("chromium", "nginx"), ("firefox", "nginx")],
)
