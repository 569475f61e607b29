"""What is wrong with the way through the proxy, why it hurts, and the line that mends it.

Judges without I/O what `public` has observed. The lines are nginx'; deploy/ has those of others.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from messagebusd.doctor.report import Finding, ok, problem, warning
from messagebusd.doctor.streams import Seen
from messagebusd.settings import Settings

# message-bus.js gives up streaming after three seconds.
SLOW_FIRST_FRAME = 2.0
SLOW_MESSAGE = 1.0
# Deadlines have a downward jitter, and buckets.
INTERVAL_PART = 0.9
# Content encodings that change nothing.
PLAIN = ("", "identity")
# What is sent to see whether a visitor is believed; the address is nobody's (RFC 5737).
FORGED_USER = "messagebusd-doctor"
FORGED_ADDRESS = "203.0.113.77"


@dataclass(slots=True)
class Observed:
    """What was seen from outside, and what arrived; None where that is not known. ``unasked`` is
    why the daemon could not be asked."""

    scheme: str
    host: str
    immediate: Seen = field(default_factory=Seen)
    arrival: dict[str, Any] | None = None
    was_announced: bool = False
    unasked: str = ""
    stream: Seen = field(default_factory=Seen)
    client: dict[str, Any] | None = None
    delays: list[float | None] = field(default_factory=list)
    may_listen: bool = True
    idle: Seen = field(default_factory=Seen)
    preflight: Seen = field(default_factory=Seen)
    inside: list[str] = field(default_factory=list)
    protocol: str | None = None


def all_findings(seen: Observed, settings: Settings) -> Iterator[Finding]:
    """Everything, from the way in to what comes out. What cannot be known is left out."""
    if seen.unasked:
        advice = "run the doctor where the daemon runs, with its configuration and a key"
        yield warning("public.daemon", seen.unasked, advice)
    reached = reachable(seen, settings)
    yield reached
    if reached.level == "problem":
        return
    yield from version(seen)
    yield from first_frame(seen)
    yield from messages(seen)
    yield compression(seen)
    yield held(seen, settings)
    yield from forwarded(seen, settings)
    yield from credentials(seen)
    yield from identity(seen, settings)
    yield cross_origin(seen, settings)
    yield inside(seen)


def reachable(seen: Observed, settings: Settings) -> Finding:
    """Whether polls come to this daemon."""
    check, poll = "public.reachable", seen.immediate
    prefix = f"{settings.server.base_route}message-bus/"
    if poll.error:
        advice = "is the proxy up, and the URL right, seen from this machine?"
        return problem(check, f"a poll was not answered: {poll.error}", advice)
    if seen.arrival is not None:
        return ok(
            check, f"a poll by the public URL reaches this daemon and is answered {poll.status}"
        )
    location = f"location {prefix} {{ proxy_pass http://messagebusd; }}"
    if 300 <= poll.status < 400:
        advice = (
            "poll the address that it redirects to (https, or with www): browsers send no POST on"
        )
        return problem(check, f"a poll is redirected ({poll.status})", advice)
    if poll.status in (502, 503, 504):
        advice = "does upstream name server.listen, and is the daemon up?"
        return problem(check, f"the proxy does not reach its upstream ({poll.status})", advice)
    if seen.was_announced:
        return problem(
            check,
            f"a poll is answered {poll.status}, and did not arrive here: it went to somebody else, "
            "or to another node",
            f"{location} with this daemon in upstream; of several nodes, examine one at a time",
        )
    if poll.status != 200:
        return problem(check, f"a poll is answered {poll.status}", location)
    return ok(check, "a poll is answered; by whom is not known")


def version(seen: Observed) -> Iterator[Finding]:
    """HTTP's versions on both sides of the proxy."""
    arrival = seen.arrival
    if arrival is not None:
        if arrival["version"] == "1.0":
            yield problem(
                "public.upstream_version",
                "the proxy speaks HTTP/1.0 to the daemon, so nothing streams: everybody long polls",
                'proxy_http_version 1.1; proxy_set_header Connection "";',
            )
        else:
            yield ok("public.upstream_version", f"HTTP/{arrival['version']} to the daemon")
    if seen.scheme == "http":
        advice = "listen 443 ssl http2; (from nginx 1.25.1 on: listen 443 ssl; http2 on;)"
        yield warning(
            "public.http_version",
            "no TLS, and so no HTTP/2: a browser opens six connections, and each tab holds one",
            advice,
        )
    elif seen.protocol == "h2":
        yield ok("public.http_version", "HTTP/2: all tabs of a browser share a connection")
    elif seen.protocol is not None:
        yield warning(
            "public.http_version",
            "no HTTP/2: a browser opens six connections, and each tab holds one",
            "listen 443 ssl http2; (from nginx 1.25.1 on: http2 on;)",
        )


def first_frame(seen: Observed) -> Iterator[Finding]:
    """Whether a stream begins when it is asked for."""
    check, stream = "public.first_frame", seen.stream
    if stream.encoding not in PLAIN:
        return  # nothing can be read of it
    if stream.error:
        yield problem(check, f"a stream broke off: {stream.error}", "see the proxy's error log")
    elif stream.status in (401, 403):
        yield warning(
            check,
            f"not examined: visitors who are not logged in are refused ({stream.status})",
            "give what somebody sends who is logged in, with --headers-file",
        )
    elif stream.status == 429:
        advice = "see the daemon's log: store and lookups; or a limit of the proxy's (limit_req)"
        yield problem(check, "a stream is told to come back later (429)", advice)
    elif stream.frames and stream.frames[0] <= SLOW_FIRST_FRAME:
        yield ok(check, f"after {stream.frames[0] * 1000:.0f} ms")
    elif stream.frames:
        yield warning(
            check,
            f"after {stream.frames[0]:.1f} s: message-bus.js gives up streaming after 3 s",
            "see messagebusd_first_frame_seconds: the store, the lookups, or the way",
        )
    elif stream.status == 200 and not stream.is_stream:
        yield problem(
            check,
            f"a poll that could stream is answered as {stream.content_type or 'no type'}",
            "proxy_http_version 1.1; and pass on answers and their type as they are",
        )
    elif stream.status not in (0, 200):
        advice = "see the proxy's error log, and the daemon's"
        yield problem(check, f"a stream is answered {stream.status}", advice)
    else:
        yield problem(
            check,
            "held back for more than 4 s: something buffers, so that messages come when the poll "
            "ends, and message-bus.js cancels each stream after 3 s and long polls",
            "proxy_buffering off; without compression, here and at each proxy in front (a CDN)",
        )


def messages(seen: Observed) -> Iterator[Finding]:
    """Whether messages pass when they come."""
    check = "public.messages"
    if not seen.may_listen:
        yield warning(
            check,
            "not examined: the channel rules let no visitor subscribe to the doctor's channel",
            'a rule for /__messagebusd_doctor/* with subscribe = "public", for as long as you look',
        )
        return
    if not seen.delays:
        return
    slowest = max(4.0 if each is None else each for each in seen.delays)
    if None in seen.delays:
        yield problem(
            check,
            "a message did not come within 4 s on an open stream: something waits for more",
            "proxy_buffering off; gzip off; and the same at each proxy in front (a CDN)",
        )
    elif slowest > SLOW_MESSAGE:
        advice = "look for buffering, and for a busy proxy or daemon"
        yield warning(check, f"the slowest of {len(seen.delays)} took {slowest:.1f} s", advice)
    else:
        found = f"each of {len(seen.delays)} came by itself, within {slowest * 1000:.0f} ms"
        yield ok(check, found)


def compression(seen: Observed) -> Finding:
    """Whether streams come as they are."""
    if seen.stream.encoding not in PLAIN:
        return problem(
            "public.compression",
            f"streams are compressed ({seen.stream.encoding}): a compressor waits for more to come",
            "gzip off; (and brotli off;) in this location; or take text/plain out of gzip_types",
        )
    return ok("public.compression", "streams are not compressed")


def held(seen: Observed, settings: Settings) -> Finding:
    """Whether a poll may wait for as long as the daemon lets it."""
    check, idle, interval = "public.timeout", seen.idle, settings.poll.long_polling_interval
    seconds = max(60, round(2 * interval))
    line = f"proxy_read_timeout {seconds}s; longer than poll.long_polling_interval"
    if idle.ended_at is None:
        return problem(
            check,
            f"a silent poll does not end after {interval:g} s: its end is held back",
            "proxy_buffering off;",
        )
    after = f"after {idle.ended_at:.1f} s"
    if idle.error:
        return problem(
            check, f"a silent poll is cut {after}, before it ends by itself at {interval:g} s", line
        )
    if idle.status != 200:
        return problem(check, f"a silent poll is answered {idle.status} {after}", line)
    if idle.ended_at < INTERVAL_PART * interval:
        return warning(
            check,
            f"a silent poll was answered to its end {after}, not at {interval:g} s",
            "is the daemon full (poll.max_active_clients), draining, or a timeout on the way?",
        )
    return ok(check, f"a silent poll waits for {idle.ended_at:.1f} s and ends by itself")


def forwarded(seen: Observed, settings: Settings) -> Iterator[Finding]:
    """Whether Host, address and scheme of the visitor arrive, and only his."""
    arrival = seen.arrival
    if arrival is None:
        return
    host = (arrival["host"] or "").lower()
    name = host.rpartition("]")[0] + "]" if host.startswith("[") else host.partition(":")[0]
    if name.strip("[]") != seen.host.lower():
        yield problem(
            "public.host",
            f"the daemon is told the host {host or 'of nobody'}, not {seen.host}: [sites] and the "
            "application see another site",
            "proxy_set_header Host $host;",
        )
    else:
        yield ok("public.host", "arrives")
    yield _address(arrival, settings)
    if arrival["forwarded_proto"] is None:
        yield warning(
            "public.scheme",
            "X-Forwarded-Proto does not arrive: the application cannot tell https from http",
            "proxy_set_header X-Forwarded-Proto $scheme;",
        )
    elif arrival["forwarded_proto"] != seen.scheme:
        yield warning(
            "public.scheme",
            f"X-Forwarded-Proto does not say {seen.scheme}: it is the visitor's own, or that of a "
            "proxy in between",
            "proxy_set_header X-Forwarded-Proto $scheme;",
        )
    else:
        yield ok("public.scheme", f"arrives: {seen.scheme}")


def _address(arrival: dict[str, object], settings: Settings) -> Finding:
    check, line = "public.address", "proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;"
    forwarded, peer = arrival["forwarded_for"], arrival["peer"]
    if forwarded is None:
        return problem(
            check,
            "X-Forwarded-For does not arrive: all visitors have one address, and share its limits",
            line,
        )
    if forwarded == FORGED_ADDRESS:
        return problem(
            check,
            "the proxy passes on the X-Forwarded-For that a visitor wrote, and adds nothing: "
            "anybody can have any address",
            line,
        )
    if not arrival["trusted"]:
        return problem(
            check,
            "the proxy's X-Forwarded-For is not believed: all visitors have the proxy's address, "
            "and share its limits",
            f'server.trusted_proxies = ["{peer or "unix"}"]',
        )
    return ok(check, f"the daemon takes this visitor for {arrival['remote_addr']}")


def credentials(seen: Observed) -> Iterator[Finding]:
    """Whether what lookups go by arrives."""
    if seen.arrival is None:
        return
    missing = [each for each in ("cookie", "authorization") if each not in seen.arrival["headers"]]
    if missing:
        names = " and ".join(each.capitalize() for each in missing)
        yield warning(
            "public.credentials",
            f"{names} of a visitor does not arrive: a lookup that goes by it sees nobody",
            " ".join(f"proxy_set_header {each.capitalize()} $http_{each};" for each in missing),
        )
    else:
        yield ok("public.credentials", "Cookie and Authorization arrive")


def identity(seen: Observed, settings: Settings) -> Iterator[Finding]:
    """Whom the daemon takes the visitor for."""
    client = seen.client
    if client is None:
        return
    user_id = client["user_id"]
    if user_id == FORGED_USER:
        header = settings.lookup.headers.user
        yield problem(
            "public.identity",
            f"a visitor who sends {header} himself is taken for whomever he names",
            f'proxy_set_header {header} ""; or what auth_request says',
        )
        return
    who = "anonymous" if user_id is None else f"user {user_id!r}"
    site = "" if client["site_id"] is None else f" at the site {client['site_id']}"
    yield ok("public.identity", f"this visitor is {who}{site}")


def cross_origin(seen: Observed, settings: Settings) -> Finding:
    """Whether preflights reach the daemon, and say what it is configured to."""
    check, preflight = "public.cors", seen.preflight
    allowed = preflight.headers.get("access-control-allow-origin")
    if preflight.status != 200 or preflight.body != b"OK":
        return warning(
            check,
            f"OPTIONS is answered {preflight.status or preflight.error} by somebody else: pages of "
            "other origins go by what that says",
            "no `return 204` for OPTIONS and no limit_except in this location: the daemon answers",
        )
    if settings.cors.allow_origins and allowed is None:
        return problem(
            check,
            "an origin of cors.allow_origins is not allowed: its pages cannot poll",
            "no proxy_hide_header Access-Control-Allow-Origin; has the daemon read its settings?",
        )
    if "," in (allowed or ""):
        return problem(
            check,
            "Access-Control-Allow-Origin is there twice, which browsers refuse",
            "no add_header Access-Control-Allow-Origin; in this location: [cors] decides",
        )
    return ok(check, "preflights are answered by the daemon")


def inside(seen: Observed) -> Finding:
    """Whether what is not for the world is not there."""
    if seen.inside:
        return problem(
            "public.internal",
            f"{', '.join(seen.inside)} can be reached by the public URL: metrics, API and login "
            "are not for the world",
            "server.internal_listen on an address of its own, and only `location /message-bus/`",
        )
    return ok("public.internal", "API, metrics and admin page are not reachable from outside")
