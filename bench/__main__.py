"""``python -m bench``: run the scenarios and report."""

from __future__ import annotations

import argparse
import gc
import os
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import uvloop

from bench import peers, plot, report
from bench.errors import BenchError
from bench.machine import Cores, describe, reserve_descriptors
from bench.scenarios import FULL, NAMES, QUICK, SCENARIOS, Bench, Figure, Scale
from bench.servers import PEERS, Peer, running

ROUNDS = 3
# Besides one for each stream of a crowd, here or in a server.
SPARE_DESCRIPTORS = 1024


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is asked for; the process' exit status."""
    options = _parser().parse_args(arguments)
    scale, rounds = (QUICK, 1) if options.quick else (FULL, ROUNDS)
    cores = Cores.choose()
    os.sched_setaffinity(0, {cores.generator})
    try:
        reserve_descriptors(scale.large + SPARE_DESCRIPTORS)
        servers = peers.found() if options.peers else PEERS
        machine = describe(cores) | (peers.versions() if options.peers else {})
        found = report.rows(uvloop.run(_measure(servers, scale, rounds, options.only, cores)))
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    others = [peer.name for peer in servers[1:]]
    if options.peers:
        text = report.peers_document(machine, found, others)
    else:
        text = report.document(machine, found)
    print(text)
    if options.json:
        options.json.write_text(report.to_json(machine, found))
    if options.write:
        report.RESULTS.write_text(report.replaced(report.RESULTS.read_text(), text))
        if options.peers:
            plot.draw(found, others)
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description="Measure messagebusd and, for ratios, two simple servers.",
    )
    parser.add_argument("--quick", action="store_true", help="a smoke test: small, one round")
    parser.add_argument(
        "--peers",
        action="store_true",
        help="compare with nchan and, where "
        f"{peers.GEM_CHECKOUT} names a checkout, the Ruby library",
    )
    parser.add_argument("--only", choices=NAMES, help="just this scenario")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write everything to a file")
    parser.add_argument("--write", action="store_true", help=f"write {report.RESULTS.name}")
    return parser


async def _measure(
    servers: Sequence[Peer], scale: Scale, rounds: int, only: str | None, cores: Cores
) -> dict[str, list[list[Figure]]]:
    """Run all rounds, the peers taking turns in who comes first; what any of the others can do."""
    others = [
        frozenset(NAMES) if peer.scenarios is None else peer.scenarios for peer in servers[1:]
    ]
    wanted = frozenset().union(*others) if only is None else frozenset({only})
    found: dict[str, list[list[Figure]]] = {peer.name: [] for peer in servers}
    for number in range(rounds):
        for peer in servers if number % 2 == 0 else reversed(servers):
            print(f"round {number + 1} of {rounds}: {peer.name}", file=sys.stderr, flush=True)
            found[peer.name].append(await _round(peer, scale, wanted, cores))
    return found


async def _round(peer: Peer, scale: Scale, wanted: frozenset[str], cores: Cores) -> list[Figure]:
    """All figures of one peer, on a server of its own."""
    chosen = [
        scenario
        for scenario in SCENARIOS
        if scenario.name in wanted and (peer.scenarios is None or scenario.name in peer.scenarios)
    ]
    figures: list[Figure] = []
    if not chosen:
        return figures
    async with running(peer, cores.server) as server, Bench.of(server, scale) as bench:
        for scenario in chosen:
            with no_collection():
                figures += await scenario.run(bench)
    return figures


@contextmanager
def no_collection() -> Iterator[None]:
    """The generator's own pauses are nobody's latency."""
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        gc.enable()


if __name__ == "__main__":
    sys.exit(main())
