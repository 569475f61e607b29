"""The store in Redis, and connections to a Redis server for whoever needs one."""

from messagebusd.backends.redis.backend import RedisBackend
from messagebusd.backends.redis.pipeline import Pipeline
from messagebusd.backends.redis.route import Route, Target
from messagebusd.settings.backend import RedisConnection

__all__ = ["Pipeline", "RedisBackend", "open_pipeline"]


def open_pipeline(settings: RedisConnection, timeout: float) -> Pipeline:
    """Commands to this server; connects when it is used first. Raises ConfigurationError."""
    return Pipeline(Route(Target.from_settings(settings), timeout), timeout=timeout)
