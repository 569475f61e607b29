"""``python -m bench.stores``: measure the stores and several workers, and report."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import replace
from pathlib import Path

import uvloop

from bench import report
from bench.__main__ import SPARE_DESCRIPTORS, no_collection
from bench.errors import BenchError
from bench.machine import Cores, describe, on_cores, reserve_descriptors
from bench.scenarios import QUICK, Figure, Scale
from bench.stores import healing, publishing
from bench.stores.crew import crew
from bench.stores.document import (
    C_CLIENT,
    GEM,
    MEMORY,
    ONE_WORKER,
    OURS,
    RUBY,
    Part,
    Round,
    document,
    to_json,
)
from bench.stores.places import Place, places, versions
from bench.stores.serving import serve

ROUNDS = 5
WATCHED = 1000
PUBLISHERS = (1, 64)
PACKAGES = ("messagebusd", "uvloop", "hiredis", "redis", "asyncpg")
FULL = Scale(small=1_000, medium=4_000, large=4_000, seconds=1.0)

POLLED = ("Redis", "PostgreSQL, fsync off", "PostgreSQL, fsync on")
# With fsync or without, there is nothing to write.
HEALED = ("Redis", "PostgreSQL, fsync off")

Way = Callable[[Place, int, float], Awaitable[list[Figure]]]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; the process' exit status."""
    options = _parser().parse_args(arguments)
    scale, rounds = (QUICK, 1) if options.quick else (FULL, ROUNDS)
    cores = Cores.choose()
    machine = {**describe(cores, PACKAGES), **versions()}
    try:
        reserve_descriptors(scale.large + SPARE_DESCRIPTORS)
        with on_cores(cores.generator), places() as found:
            parts = uvloop.run(_measure(found, scale, rounds, cores))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    machine |= {"rounds": str(rounds), "load after it": f"{os.getloadavg()[0]:.1f}"}
    text = document(machine, parts)
    print(text)
    if options.json:
        options.json.write_text(to_json(machine, parts))
    if options.write:
        old = report.RESULTS.read_text()
        report.RESULTS.write_text(report.replaced(old, text))
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench.stores",
        description="Measure the stores against the Ruby library's way, and two workers against "
        f"one. {publishing.GEM_CHECKOUT} may name a checkout of the Ruby library.",
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test: small, one round")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file")
    parser.add_argument("--write", action="store_true", help=f"write {report.RESULTS.name}")
    return parser


async def _measure(found: Sequence[Place], scale: Scale, rounds: int, cores: Cores) -> list[Round]:
    """All rounds, everybody taking turns in who comes first."""
    measured = []
    for number in range(rounds):
        print(f"round {number + 1} of {rounds}", file=sys.stderr, flush=True)
        measured.append(await _round(found, scale, cores, 1 if number % 2 == 0 else -1))
    return measured


async def _round(found: Sequence[Place], scale: Scale, cores: Cores, step: int) -> Round:
    results: Round = []
    for place in found[::step]:
        with on_cores(cores.server):
            results += await _direct(place, scale.seconds, step)
        results += await _served(place, scale, cores.server)
        if place.name in HEALED:
            with no_collection():
                figures = await healing.heal(place, WATCHED)
            results += [(Part.HEALING, OURS, figure) for figure in figures]
    [redis] = (place for place in found if place.kind == "redis")
    everywhere = {cores.server, cores.generator}
    os.sched_setaffinity(redis.pid or 0, everywhere)
    with on_cores(*everywhere), no_collection():
        for workers in (2, 1)[::step]:
            peer = OURS if workers == 2 else ONE_WORKER
            figures = await crew(redis, scale, workers, *everywhere)
            results += [(Part.WORKERS, peer, figure) for figure in figures]
    os.sched_setaffinity(redis.pid or 0, {cores.generator})
    return results


async def _direct(place: Place, seconds: float, step: int) -> Round:
    """Publishes without HTTP, all ways in turn."""
    results: Round = []
    ways: list[tuple[str, Way]] = [(OURS, publishing.ours)]
    if place.kind != "memory":
        ways += [(GEM, publishing.gems_way), (C_CLIENT, publishing.c_client)]
        if publishing.GEM_CHECKOUT in os.environ:
            ways.append((RUBY, publishing.ruby))
    for publishers in PUBLISHERS:
        for peer, way in ways[::step]:
            if place.kind == "postgres" and peer != OURS:
                await publishing.empty_tables(place)
            with no_collection():
                figures = await way(place, publishers, seconds)
            results += [(Part.DIRECT, peer, figure) for figure in figures]
            if peer == GEM:  # what publishes over HTTP are compared with, too
                timed = [figure for figure in figures if figure.unit != "µs"]
                results += [(Part.HTTP, peer, figure) for figure in timed]
    return results


async def _served(place: Place, scale: Scale, core: int) -> Round:
    with no_collection():
        published, polled = await serve(place, scale, PUBLISHERS, core)
    results: Round = [(Part.HTTP, OURS, figure) for figure in published]
    for figure in polled:
        if place.kind == "memory":
            results += [
                (Part.POLLS, MEMORY, replace(figure, name=f"{name}, {figure.name}"))
                for name in POLLED
            ]
        results.append((Part.POLLS, OURS, replace(figure, name=f"{place.name}, {figure.name}")))
    return results


if __name__ == "__main__":
    sys.exit(main())
