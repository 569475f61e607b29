"""What all applications here have in common, and how they are served."""

from __future__ import annotations

import logging
from collections.abc import Callable, MutableMapping
from typing import Any

from aiohttp import web
from aiohttp.http_exceptions import HttpProcessingError
from aiohttp.typedefs import Handler

from messagebusd.http.middleware import Errors, problem_middleware
from messagebusd.metrics import Metrics

# Longer than the idle time of common proxies (60 s): the proxy is the one to close. It also bounds
# how long a request's head may take.
KEEPALIVE_SECONDS = 75.0
# How long the rest of a refused body is read and thrown away, so that its sender sees the answer
# instead of a reset.
LINGER_SECONDS = 3.0
# The largest body that is read without a limit of its own: another worker's page of names.
MAX_BODY_BYTES = 16 * 1024 * 1024


def application(errors: Errors, is_draining: Callable[[], bool]) -> web.Application:
    """An application without routes, with what all of ours have in common."""

    @web.middleware
    async def say_goodbye(request: web.Request, handler: Handler) -> web.StreamResponse:
        """While draining, let clients and proxies open their next connection elsewhere."""
        response = await handler(request)
        if is_draining():
            response.force_close()
        return response

    app = web.Application(
        middlewares=[say_goodbye, problem_middleware(errors)], client_max_size=MAX_BODY_BYTES
    )
    app.on_response_prepare.append(_hide_software)
    return app


async def _hide_software(request: web.Request, response: web.StreamResponse) -> None:
    """Do not tell the world which versions to attack."""
    response.headers.popall("Server", None)


def runner(app: web.Application, metrics: Metrics, shutdown_timeout: float) -> web.AppRunner:
    """Serve an application with this daemon's manners."""
    return web.AppRunner(
        app,
        access_log=None,
        auto_decompress=False,  # a few bytes could stand for gigabytes
        handle_signals=False,
        keepalive_timeout=KEEPALIVE_SECONDS,
        lingering_time=LINGER_SECONDS,
        logger=_ProtocolLog(lambda: metrics.refused("http", "bad_http")),
        shutdown_timeout=shutdown_timeout,
    )


class _ProtocolLog(logging.LoggerAdapter[logging.Logger]):
    """Counts what is no HTTP, instead of logging a traceback for everybody who sends some."""

    def __init__(self, refused: Callable[[], None]) -> None:
        super().__init__(logging.getLogger("messagebusd.http"), {})
        self._refused = refused

    def exception(self, msg: object, *args: object, **kwargs: Any) -> None:
        error = kwargs.get("exc_info")
        if isinstance(error, HttpProcessingError):
            self._refused()
            # Without its text, which quotes the request, keys and all.
            self.debug("bad request", extra={"reason": type(error).__name__})
        else:
            super().exception(msg, *args, **kwargs)

    def process(
        self, msg: Any, kwargs: MutableMapping[str, Any]
    ) -> tuple[Any, MutableMapping[str, Any]]:
        return msg, kwargs
