"""Settings that are read again while the daemon runs (SPEC 8): what changes, and what cannot.

Keys, rules, limits, CORS, lookups and log take effect at once. What sockets, processes, stores and
routes were made of stays until a restart, and is told.
"""

from __future__ import annotations

from typing import Any, NamedTuple, TypeVar

from pydantic import BaseModel

from messagebusd.errors import ConfigurationError
from messagebusd.settings.keys import KEYS
from messagebusd.settings.loading import LoadedSettings
from messagebusd.settings.model import Settings

Model = TypeVar("Model", bound=BaseModel)

NEEDS_RESTART = (
    "server.listen",
    "server.internal_listen",
    "server.base_route",
    "server.workers",
    "server.reuse_port",
    "poll.enabled",
    "backend.",
    "api.enabled",
    "admin.",
    "ingest.",
    "metrics.",
)
"""Keys, and beginnings of keys, that a reload leaves as they are."""


class Reload(NamedTuple):
    """What a reload comes to: the settings that are then in effect, the keys that change, and those
    that would have to, but need a restart."""

    loaded: LoadedSettings
    changed: tuple[str, ...]
    left: tuple[str, ...]


def needs_restart(name: str) -> bool:
    """Whether a change of this key has no effect before a restart."""
    return name.startswith(NEEDS_RESTART)


def merge(running: LoadedSettings, read: LoadedSettings) -> Reload:
    """Take over of the settings that were read what can change while the daemon runs.

    Raises ConfigurationError where that does not fit what stays.
    """
    changed, left = [], []
    settings, sources = read.settings, dict(read.sources)
    for name, key in KEYS.items():
        before = _value(running.settings, key.path)
        if before == _value(read.settings, key.path):
            continue
        if needs_restart(name):
            left.append(name)
            settings = _with(settings, key.path, before)
            sources[name] = running.sources[name]
        else:
            changed.append(name)
    if problems := settings.contradictions():
        raise ConfigurationError(
            [f"{key} {problem}" for key, problem in problems]
            + [f"{', '.join(left)} cannot change without a restart"]
        )
    loaded = LoadedSettings(settings, sources, read.warnings)
    return Reload(loaded, tuple(changed), tuple(left))


def _value(settings: Settings, path: tuple[str, ...]) -> Any:
    value: Any = settings
    for step in path:
        value = getattr(value, step)
    return value


def _with(section: Model, path: tuple[str, ...], value: object) -> Model:
    """The section with another value there; both were checked before."""
    name, *rest = path
    if rest:
        value = _with(getattr(section, name), tuple(rest), value)
    return section.model_copy(update={name: value})
