"""Floor 1: where messages live. `base.Backend` is the contract.

`open_backend` is the only place that knows all stores.
"""

from messagebusd.backends.base import Backend, Observer, Retention
from messagebusd.backends.codec import load_codec
from messagebusd.backends.memory import MemoryBackend
from messagebusd.backends.postgres import PostgresBackend
from messagebusd.backends.redis import RedisBackend
from messagebusd.settings import BackendSettings


def open_backend(settings: BackendSettings, observer: Observer) -> Backend:
    """The configured store, not opened yet. Raises ConfigurationError."""
    retention = Retention(
        settings.max_backlog_size,
        settings.max_global_backlog_size,
        settings.max_backlog_age,
        settings.clear_every,
    )
    interval, codec = settings.keepalive_interval, load_codec(settings.codec)
    if settings.kind == "redis":
        return RedisBackend(
            retention, settings.redis, observer, keepalive_interval=interval, codec=codec
        )
    if settings.kind == "postgres":
        return PostgresBackend(
            retention, settings.postgres, observer, keepalive_interval=interval, codec=codec
        )
    memory = settings.memory
    return MemoryBackend(retention, max_bytes=memory.max_bytes, snapshot_file=memory.snapshot_file)
