"""Routes whose handlers are exchanged while they are served.

aiohttp freezes an application's routes when it starts; what they lead to may change with the
settings. A request is served to its end by the handler that it met.
"""

from __future__ import annotations

from collections.abc import Sequence

from aiohttp import web
from aiohttp.typedefs import Handler


class Switchboard:
    """``routes`` are for an application, in place of those that it was made of."""

    def __init__(self, routes: Sequence[web.RouteDef]) -> None:
        self._handlers = _handlers(routes)
        self.routes = [self._switched(each) for each in routes]

    def exchange(self, routes: Sequence[web.RouteDef]) -> None:
        """Lead to these handlers from now on; they are for the same methods and paths."""
        handlers = _handlers(routes)
        assert handlers.keys() == self._handlers.keys()
        self._handlers = handlers

    def _switched(self, route: web.RouteDef) -> web.RouteDef:
        place = (route.method, route.path)

        async def handle(request: web.Request) -> web.StreamResponse:
            return await self._handlers[place](request)

        return web.RouteDef(route.method, route.path, handle, route.kwargs)


def _handlers(routes: Sequence[web.RouteDef]) -> dict[tuple[str, str], Handler]:
    return {(each.method, each.path): each.handler for each in routes}
