"""``messagebusd doctor``: looks at the store as the settings name it, and says what is wrong.

``redis.py`` and ``postgres.py`` examine a store with connections made as the daemon makes them;
``redis_server.py`` and ``postgres_server.py`` judge what a server said of itself, without I/O;
``process.py`` looks at this process, ``webhook.py`` asks the application, ``public.py`` polls by
the public URL and ``public_findings.py`` judges that; ``report.py`` is what all of them find.
Nothing is changed: the doctor writes keys or rows of its own, which it deletes, publishes one
keepalive, and messages to itself on a channel of its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from urllib.parse import urlsplit

from messagebusd.doctor import process
from messagebusd.doctor.report import Report
from messagebusd.settings import Settings

__all__ = ["examine"]


async def examine(
    settings: Settings,
    *,
    public_url: str | None = None,
    key: str | None = None,
    headers: Mapping[str, str] | None = None,
) -> Report:
    """Everything that can be found out, from the inside to the outside. Raises nothing.

    ``public_url`` is where browsers poll, ``key`` one for the daemon's API; ``headers`` are what
    somebody sends who is logged in.
    """
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
    if settings.lookup.mode == "webhook":
        from messagebusd.doctor import webhook

        host = urlsplit(public_url or "").hostname or "localhost"
        await webhook.examine(settings, report, host, key)
    if public_url is not None:
        from messagebusd.doctor import public

        await public.examine(settings, report, public_url, key, headers)
    return report
