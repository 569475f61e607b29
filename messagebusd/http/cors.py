"""Cross-origin access, from configuration alone (SPEC 2.8)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence


class CorsPolicy:
    """Which origins may poll; ``*`` stands for all. ``max_age`` in seconds.

    No credentials are allowed: the browser client never sends any across origins
    (REFERENCE 1.5).
    """

    def __init__(
        self,
        allow_origins: Sequence[str],
        allow_headers: Sequence[str],
        expose_headers: Sequence[str],
        max_age: int,
    ) -> None:
        self._origins = frozenset(allow_origins)
        self._exposed = ", ".join(expose_headers)
        self._preflight = {
            "access-control-allow-methods": "POST, OPTIONS",
            "access-control-allow-headers": ", ".join(allow_headers),
            "access-control-max-age": str(max_age),
        }

    def headers(self, origin: str | None) -> Mapping[str, str]:
        """What an answer to this origin carries."""
        if not self._origins:
            return {}
        if "*" in self._origins:
            allowed = {"access-control-allow-origin": "*"}
        elif origin in self._origins and origin is not None:
            allowed = {"access-control-allow-origin": origin, "vary": "Origin"}
        else:
            return {"vary": "Origin"}
        if self._exposed:
            allowed["access-control-expose-headers"] = self._exposed
        return allowed

    def preflight_headers(self, origin: str | None) -> Mapping[str, str]:
        """What the answer to a preflight of this origin carries."""
        headers = self.headers(origin)
        if "access-control-allow-origin" not in headers:
            return headers
        return {**headers, **self._preflight}
