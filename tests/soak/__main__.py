"""``python -m tests.soak``: soak, say how it stands, and exit with 1 if anything was not right."""

from __future__ import annotations

import asyncio
import json
import random
import sys
import tempfile
import time
from pathlib import Path

import click

from bench.machine import reserve_descriptors
from tests.soak.faults import faults_of
from tests.soak.run import Part, Plan, record, soak
from tests.soak.verdict import table
from tests.soak.world import STORES


@click.command(context_settings={"show_default": True})
@click.option("--seconds", default=600.0, help="How long the load lasts.")
@click.option("--stores", default=",".join(STORES), help="An installation for each of these.")
@click.option("--seed", type=int, help="Repeat a run's schedule.  [default: a new one]")
@click.option("--browsers", default=80, help="Subscribers of each installation.")
@click.option("--pause", default=12.0, help="Seconds between two faults, on average.")
@click.option("--out", default=Path("soak.json"), type=Path, help="Where the samples go.")
def main(
    seconds: float, stores: str, seed: int | None, browsers: int, pause: float, out: Path
) -> None:
    """Load messagebusd, break what can break, and hold it to its promises. See docs/soak.md."""
    kinds = stores.split(",")
    if unknown := set(kinds) - set(STORES):
        raise click.BadParameter(f"not a store: {', '.join(sorted(unknown))}")
    reserve_descriptors(8192)
    plan = Plan(
        stores=kinds,
        seconds=seconds,
        seed=random.SystemRandom().randrange(10**6) if seed is None else seed,
        browsers=browsers,
        interval=5.0,
        pause=(pause / 2, pause * 1.5),
        sample_every=5.0,
        report_every=20.0,
        faults=faults_of,
    )
    began = time.monotonic()
    _say(f"{seconds:.0f} s on {', '.join(kinds)}, seed {plan.seed}")
    with tempfile.TemporaryDirectory(prefix="messagebusd-soak-") as folder:
        Path(folder).chmod(0o755)  # PostgreSQL's user has its own folders below it
        parts = asyncio.run(soak(plan, Path(folder), _say))
        out.write_text(json.dumps(record(plan, parts), indent=1) + "\n")
    sys.exit(_report(parts, time.monotonic() - began, out))


def _report(parts: list[Part], seconds: float, out: Path) -> int:
    """Print what was done and what came of it; the exit code."""
    done = [part.done() for part in parts]
    names = sorted({name for each in done for name in each})
    _say("\n" + " " * 48 + "".join(f"{part.place.kind:>10}" for part in parts))
    for name in names:
        _say(f"{name:<48}" + "".join(f"{each.get(name, 0):>10,}" for each in done))
    outcomes = [part.outcome() for part in parts]
    _say("")
    for line in table(outcomes):
        _say(line)
    findings = [each for outcome in outcomes for each in outcome.all_findings()]
    _say("")
    for outcome in outcomes:
        for example in [*outcome.wrong_examples, *outcome.unexcused_examples][:20]:
            _say(f"  {outcome.kind}: {example}")
    for finding in findings:
        _say(f"WRONG  {finding}")
    _say(f"{'FAILED' if findings else 'PASSED'} after {seconds:.0f} s; samples in {out}")
    return 1 if findings else 0


def _say(line: str) -> None:
    print(line, flush=True)


if __name__ == "__main__":
    main()
