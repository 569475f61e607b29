"""What of a request is left when it arrives here: for the doctor, who sends some from outside.

Whoever has a key announces a probe and is given a client id for it. How a poll of that client id
arrived is noted for a while: names of headers, and values of none but those that proxies write.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable

import msgspec
from aiohttp import web

from messagebusd.errors import MalformedRequest
from messagebusd.http.auth import KeyRing
from messagebusd.http.call import Call
from messagebusd.http.exchange import Query, answer, refuse_query
from messagebusd.http.proxies import TrustedProxies
from messagebusd.http.siblings import Siblings

# Probes that are waited for at the same time, and for how long.
MAX_PROBES = 32
PROBE_SECONDS = 300.0
# Names of headers that are noted, and the length of one or of a value.
MAX_NAMES = 64
MAX_TEXT = 256


class Arrival(msgspec.Struct, frozen=True):
    """How a probe arrived. ``peer`` is who connected, ``remote_addr`` for whom he asks, if he is
    ``trusted``; the headers are None where they did not come."""

    method: str
    version: str
    peer: str
    trusted: bool
    remote_addr: str
    host: str | None
    forwarded_for: str | None
    forwarded_proto: str | None
    headers: list[str]


class Probes:
    """The probes of this worker. ``clock`` is monotonic, in seconds."""

    def __init__(
        self, proxies: TrustedProxies, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.proxies = proxies
        self._clock = clock
        # Client ids, with until when they are waited for.
        self.expected: dict[str, float] = {}
        self._arrived: dict[str, Arrival] = {}

    def expect(self, client_id: str) -> None:
        """A probe is on its way."""
        now = self._clock()
        for each, until in tuple(self.expected.items()):
            if until <= now or len(self.expected) >= MAX_PROBES:
                del self.expected[each]
                self._arrived.pop(each, None)
        self.expected[client_id] = now + PROBE_SECONDS

    def note(self, client_id: str, call: Call) -> None:
        """One has come."""
        headers, transport = call.headers, call.transport
        peername = None if transport is None else transport.get_extra_info("peername")

        def value(name: str) -> str | None:
            lines = headers.getall(name, ())
            return _shown(", ".join(lines)) if lines else None

        self._arrived[client_id] = Arrival(
            call.method,
            f"{call.version[0]}.{call.version[1]}",
            str(peername[0]) if isinstance(peername, tuple) else "",
            self.proxies.trusts(transport),
            self.proxies.client_address(transport, headers),
            value("Host"),
            value("X-Forwarded-For"),
            value("X-Forwarded-Proto"),
            sorted({_shown(name.lower()) for name in headers})[:MAX_NAMES],
        )

    def arrival(self, client_id: str) -> Arrival | None:
        """How it arrived, if it has."""
        return self._arrived.get(client_id)


class ProbeDoor:
    """Answers to keys with the scope admin, for all workers of this daemon."""

    def __init__(self, probes: Probes, keys: KeyRing, siblings: Siblings) -> None:
        self._probes = probes
        self._keys = keys
        self._siblings = siblings

    async def announce(self, request: web.Request) -> web.Response:
        """Make a client id, and note how its polls arrive."""
        self._keys.authorize(request, "admin").require_unrestricted()
        refuse_query(request)
        client_id = f"doctor-{secrets.token_hex(12)}"
        self._probes.expect(client_id)
        others = await self._siblings.ask("/probes/expect", client_id)
        return answer(msgspec.json.encode({"client_id": client_id, **others.note()}))

    async def tell(self, request: web.Request) -> web.Response:
        """How its latest poll arrived; null if none has."""
        self._keys.authorize(request, "admin").require_unrestricted()
        client_id = Query(request, "client_id").text("client_id")
        if client_id is None:
            raise MalformedRequest("the query parameter 'client_id' is missing")
        others = await self._siblings.ask("/probes/tell", client_id)
        found = [self._probes.arrival(client_id), *(each["arrival"] for each in others.bodies)]
        arrival = next((each for each in found if each is not None), None)
        return answer(msgspec.json.encode({"arrival": arrival, **others.note()}))

    async def sibling_expect(self, request: web.Request) -> web.Response:
        """Another worker has announced it."""
        self._probes.expect(msgspec.json.decode(await request.read(), type=str))
        return answer(b"true")

    async def sibling_tell(self, request: web.Request) -> web.Response:
        """How it arrived here, if it has."""
        client_id = msgspec.json.decode(await request.read(), type=str)
        return answer(msgspec.json.encode({"arrival": self._probes.arrival(client_id)}))


def _shown(text: str) -> str:
    """Bytes that are no UTF-8 are surrogates, which no JSON can hold."""
    return text[:MAX_TEXT].encode("utf-8", "replace").decode()
