"""The second part of bench/RESULTS.md: stores and workers."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from enum import StrEnum

from bench.report import STORES_PART, Row, Series, table
from bench.scenarios import Figure
from bench.servers import MESSAGEBUSD

OURS = MESSAGEBUSD.name
GEM = "gem's way"
C_CLIENT = "C client"
RUBY = "Ruby gem"
MEMORY = "memory"
ONE_WORKER = "one worker"


class Part(StrEnum):
    """The tables, by their headings."""

    DIRECT = "Publishing, without HTTP"
    HTTP = "Publishing over HTTP"
    POLLS = "Polls that are answered at once"
    HEALING = "After a break"
    WORKERS = "Two workers and one"


# One figure of one peer in one round.
Round = list[tuple[Part, str, Figure]]

_NOTES = {
    Part.DIRECT: f"""\
So many publishers, each with its next message when the last one is stored. **messagebusd** is the
store object in a process of its own, which also hears its announcements. **{GEM}** does what the
Ruby library does for a publish, each publisher on a connection of its own, with the Python client
of the same event loop: on Redis an `EVALSHA` of a script with the same commands (redis-py), on
PostgreSQL `INSERT … RETURNING id` and then `SELECT pg_notify`, each its own transaction (asyncpg).
Nobody listens to it and on PostgreSQL it does not trim, so it has less to do than the library.
**{C_CLIENT}** is the same by `redis-benchmark` and by `pgbench` with prepared statements: what of
it is Python. **{RUBY}** is the library itself, 4.5.2, one process, a thread for each publisher;
it trims. The publishing process has a core, the store's server has the other.""",
    Part.HTTP: f"""\
One worker on one core; the store's server shares the other one with the load generator. **{GEM}**
is that of the first table, in the same round: without any HTTP.""",
    Part.POLLS: """\
Of one channel, 16 at a time. **memory** is the daemon on its own memory in the same round.""",
    Part.HEALING: """\
The connections of a store object are cut and new ones refused while messages are published by
another; then they are accepted. From the first new connection on until the last message was
announced: how long the store waits before it tries again (0.05 to 2 s) is not in it. `inf` would
mean that not all of them were announced within 10 s.""",
    Part.WORKERS: """\
On Redis. This machine has two cores, and workers, Redis and the load generator, which is a process
of its own, share them: one worker can have a core to itself, two cannot have two. The ratios say
what is gained here, and nothing about machines with more cores. If one worker is limited by its own
core, and two by both cores being busy, then, by the CPU times and the generator's part of one
worker's runs, two can be at most this many times one. `waited` is the sum of the workers'.""",
}
_COLUMNS: Mapping[Part, tuple[str, ...]] = {
    Part.DIRECT: (GEM, C_CLIENT, RUBY),
    Part.HTTP: (GEM,),
    Part.POLLS: (MEMORY,),
    Part.HEALING: (),
    Part.WORKERS: (ONE_WORKER,),
}
_HEAD = """\
Written by `python -m bench.stores --write`. Ratios are within a round, by whose median they are
given; columns are as above, `CPU µs` being that of the publishing process or of the daemon. The
order within a round is turned round from one to the next."""


def document(machine: Mapping[str, str], rounds: Sequence[Round]) -> str:
    """The whole part."""
    facts = "\n".join(f"* {name}: {value}" for name, value in machine.items())
    sections = "\n".join(_section(part, _rows(rounds, part)) for part in Part)
    return f"{STORES_PART}\n\n{_HEAD}\n\n{facts}\n\n{sections}"


def _section(part: Part, found: Sequence[Row]) -> str:
    present = {peer for row in found for peer in row.peers}
    others = [peer for peer in _COLUMNS[part] if peer in present]
    ours = "two workers" if part is Part.WORKERS else OURS
    text = f"## {part}\n\n{table(found, others, ours)}\n\n{_NOTES[part]}"
    if part is Part.WORKERS:
        text += "".join(f"\n* {line}" for line in _limits(found))
    return f"{text}\n"


def _limits(found: Sequence[Row]) -> Iterator[str]:
    """What two workers could reach here, if whatever is not them stays as it is."""
    for row in found:
        one = row.peers[ONE_WORKER]
        if one.server_cpu is not None and one.generator is not None:
            own = one.server_cpu
            others = one.generator / one.value
            limit = 2 * max(own, others) / (own + others)
            yield f"{row.figure.name}: {limit:.2f} (less, as Redis is not counted)"


def _rows(rounds: Sequence[Round], part: Part) -> list[Row]:
    found: dict[str, dict[str, list[Figure]]] = {}
    for measured in rounds:
        for where, peer, figure in measured:
            if where is part:
                found.setdefault(figure.name, {}).setdefault(peer, []).append(figure)
    columns = (OURS, *_COLUMNS[part])
    return [
        Row(peers[OURS][0], {peer: Series(peers[peer]) for peer in columns if peer in peers})
        for peers in found.values()
    ]


def to_json(machine: Mapping[str, str], rounds: Sequence[Round]) -> str:
    """Every figure of every round."""
    figures = [
        {"part": row_part, "name": row.figure.name, "unit": row.figure.unit}
        | {"peers": {peer: _finite(series.values) for peer, series in row.peers.items()}}
        | {"cpu": {peer: series.server_cpu for peer, series in row.peers.items()}}
        for row_part in Part
        for row in _rows(rounds, row_part)
    ]
    return json.dumps({"machine": dict(machine), "figures": figures}, indent=1) + "\n"


def _finite(values: Sequence[float]) -> list[float | None]:
    """JSON has no infinity."""
    return [value if math.isfinite(value) else None for value in values]
