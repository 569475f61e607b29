"""``GET {base_route}message-bus/client.js``: the browser client, for pages to load.

Built from clients/typescript by `make clients`, and part of the packages. Only GET and HEAD are
answered here: a poll of a client that calls itself ``client.js`` is a poll like any other.
"""

from __future__ import annotations

import gzip
import hashlib
from collections.abc import Mapping
from pathlib import Path

from aiohttp import hdrs, web

import messagebusd
from messagebusd.errors import NotFound
from messagebusd.http.call import request_id, to_response
from messagebusd.http.problems import problem_answer

FOLDER = Path(messagebusd.__file__).parent / "browser"
# The client; the same with what lets all tabs share one connection; the worker of that.
NAMES = ("client.js", "sharing.js", "worker.js")

# Bytes, entity tag, headers.
_Form = tuple[bytes, str, dict[str, str]]

_HEADERS: Mapping[str, str] = {
    # A page that is loaded again asks whether its script is still the one; hours after a new
    # version of the daemon nobody runs the old one.
    "Cache-Control": "public, max-age=600",
    # It is no secret, and pages of other origins may poll if [cors] says so.
    "Access-Control-Allow-Origin": "*",
    "Cross-Origin-Resource-Policy": "cross-origin",
    "X-Content-Type-Options": "nosniff",
    "Vary": "Accept-Encoding",
}


class ClientScripts:
    """Answers with the scripts in ``folder``, which are read once."""

    def __init__(self, prefix: str, folder: Path = FOLDER) -> None:
        self._prefix = prefix
        self._scripts = {
            name: _Script((folder / name).read_bytes())
            for name in NAMES
            if (folder / name).is_file()
        }

    def add_to(self, app: web.Application) -> None:
        """Add the routes; before the poll's, which takes whatever path is left."""
        for name in NAMES:
            app.router.add_get(self._prefix + name, self._handle)

    async def _handle(self, request: web.Request) -> web.StreamResponse:
        script = self._scripts.get(request.path.rpartition("/")[2])
        if script is None:
            missing = NotFound(
                "the browser client is not part of this installation; `make clients` builds it"
            )
            headers = [("Cache-Control", "no-store")]
            return to_response(problem_answer(missing, request_id(request), headers))
        return script.answer(request)


class _Script:
    """One script, as it is and compressed."""

    def __init__(self, plain: bytes) -> None:
        digest = hashlib.sha256(plain).hexdigest()[:32]
        # No time in it: the same script is the same bytes.
        compressed = gzip.compress(plain, mtime=0)
        self._plain: _Form = (plain, digest, {})
        self._compressed: _Form = (compressed, f"{digest}-gzip", {hdrs.CONTENT_ENCODING: "gzip"})

    def answer(self, request: web.Request) -> web.Response:
        accepted = request.headers.get(hdrs.ACCEPT_ENCODING, "").lower()
        takes_gzip = any(
            part.partition(";")[0].strip() == "gzip" and "q=0" not in part.replace(" ", "")
            for part in accepted.split(",")
        )
        body, tag, encoding = self._compressed if takes_gzip else self._plain
        headers = {**_HEADERS, hdrs.ETAG: f'"{tag}"'}
        known = request.if_none_match or ()
        if any(each.value in (tag, "*") for each in known):
            return web.Response(status=304, headers=headers)
        return web.Response(
            body=body, content_type="text/javascript", charset="utf-8", headers=headers | encoding
        )
