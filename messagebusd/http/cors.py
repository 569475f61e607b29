"""Cross-origin access, from configuration alone (SPEC 2.8)."""

from __future__ import annotations

from collections.abc import Sequence

from messagebusd.protocol.wire import Headers

_CORS = "access-control-"
_ALLOWED = "access-control-allow-origin"
_VARY = "vary"


class CorsPolicy:
    """Which origins may poll; ``*`` stands for all. ``max_age`` in seconds.

    No credentials are allowed: the browser client never sends any across origins
    (REFERENCE 1.5), and a page of another origin can only use what it knows itself, a token in a
    header. Nor is access asked for to private networks: browsers ask the person instead.
    """

    def __init__(
        self,
        allow_origins: Sequence[str],
        allow_headers: Sequence[str],
        expose_headers: Sequence[str],
        max_age: int,
    ) -> None:
        self.origins = frozenset(allow_origins)
        self._exposed: Headers = ()
        if expose_headers:
            self._exposed = (("access-control-expose-headers", ", ".join(expose_headers)),)
        self._preflight: Headers = (
            ("access-control-allow-methods", "POST, OPTIONS"),
            ("access-control-allow-headers", ", ".join(allow_headers)),
            # Browsers keep the answer for as long as this says, and heed no other header.
            ("access-control-max-age", str(max_age)),
        )

    def add_to(self, headers: Headers, origin: str | None) -> Headers:
        """The headers of an answer to this origin.

        Where origins are configured they alone decide, whatever these headers say of it. Unless
        all are, a cache is told that answers depend on the origin, also those without one.
        """
        if not self.origins:
            return headers
        kept = tuple(each for each in headers if not each[0].startswith(_CORS))
        if "*" in self.origins:
            return (*kept, (_ALLOWED, "*"), *self._exposed)
        varies = ", ".join(value for name, value in kept if name == _VARY and value)
        added = (*(each for each in kept if each[0] != _VARY), (_VARY, _with_origin(varies)))
        if origin is not None and origin in self.origins:
            return (*added, (_ALLOWED, origin), *self._exposed)
        return added

    def add_preflight(self, headers: Headers) -> Headers:
        """The headers of the answer to a preflight, given those that `add_to` made."""
        if self.origins and any(name == _ALLOWED for name, _ in headers):
            return (*headers, *self._preflight)
        return headers


def _with_origin(vary: str) -> str:
    if not vary:
        return "Origin"
    names = {name.strip().lower() for name in vary.split(",")}
    return vary if names & {"*", "origin"} else f"{vary}, Origin"
