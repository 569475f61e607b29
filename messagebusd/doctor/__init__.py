"""``messagebusd doctor``: looks at the store as the settings name it, and says what is wrong.

``redis.py`` and ``postgres.py`` examine a store with connections made as the daemon makes them;
``redis_server.py`` and ``postgres_server.py`` judge what a server said of itself, without I/O;
``process.py`` looks at this process; ``report.py`` is what all of them find. Nothing is changed:
the doctor writes keys or rows of its own, which it deletes, and publishes one keepalive.
"""

from __future__ import annotations

from messagebusd.doctor import process
from messagebusd.doctor.report import Report
from messagebusd.settings import Settings

__all__ = ["examine"]


async def examine(settings: Settings) -> Report:
    """Everything that can be found out, from the inside to the outside. Raises nothing."""
    report = Report()
    report.add(process.open_files(settings))
    match settings.backend.kind:
        case "memory":
            report.extend(process.memory_store(settings))
        case "redis":
            from messagebusd.doctor.redis import examine_store as examine_redis

            await examine_redis(settings, report)
        case "postgres":
            from messagebusd.doctor.postgres import examine_store as examine_postgres

            await examine_postgres(settings, report)
    if settings.ingest.redis.enabled:
        from messagebusd.doctor.redis import examine_inbox

        await examine_inbox(settings, report)
    return report
