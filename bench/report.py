"""From rounds of figures to a table, to JSON, and to bench/RESULTS.md."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

from bench.scenarios import Figure
from bench.servers import BARE, MESSAGEBUSD, PLAIN

RESULTS = Path(__file__).with_name("RESULTS.md")
# The parts of that file, in their order; each is written by a command of its own.
OWN_PART, PEERS_PART, STORES_PART = "# Results", "# Peers", "# Stores and workers"
# Above this part of the time the load generator may be what limits a figure.
BUSY_GENERATOR = 0.85
# Above this part of the time the neighbours' work is in a figure as well.
DISTURBED = 0.10

_OWN = """\
Written by `python -m bench --write`. **plain** is the same protocol on aiohttp the textbook way
(`bench/plain_aiohttp.py`), without most of what the daemon does besides. **bare** does nothing but
read and write ready-made bytes (`bench/bare.py`): what a request costs here at least, and
a fan-out, if each message is a write of its own to each transport. All go through the same work in
the same rounds; a figure is the median of its rounds. Streams are held by a program in C
(`bench/crowd.c`)."""
_PEERS = """\
Written by `python -m bench --peers --write`. **nchan** is nginx with that module, one worker;
**gem** is the Ruby library under Puma, with its memory store (`bench/peers/`). Notes are as above.

![messagebusd, nchan and the gem side by side](peers.svg)"""
_NOTES = f"""\
* `× …`: how many times better messagebusd was in the same round (median). The ratios
  count; absolute figures are for orientation, and differences under 25 % mean nothing.
* `p99`: of deliveries it is one; of fan-outs to many there are only as many as fit into a scenario
  (under ten a round for the largest crowd), and it is the longest of them.
* `CPU µs`: what one operation took of the server's core, for messagebusd / the others in their
  order. Other work on the machine disturbs this the least.
* `generator`: how busy the load generator was, likewise. Above {BUSY_GENERATOR:.0%} (!) it may be
  what limits the figure.
* `waited`: how long a process was ready to run while something else had its core. Above
  {DISTURBED:.0%} (!) of the time, other work on the machine is in the figure. A virtual machine's
  neighbours do not show here, but as a wide span from the lowest to the highest."""


@dataclass(frozen=True, slots=True)
class Series:
    """One figure of one peer, in all rounds."""

    figures: Sequence[Figure]

    @property
    def values(self) -> list[float]:
        return [figure.value for figure in self.figures]

    @property
    def value(self) -> float:
        return median(self.values)

    @property
    def server_cpu(self) -> float | None:
        return _median(figure.server_cpu for figure in self.figures)

    @property
    def generator(self) -> float | None:
        return _median(figure.generator for figure in self.figures)

    @property
    def waited(self) -> float | None:
        return _median(figure.waited for figure in self.figures)


@dataclass(frozen=True, slots=True)
class Row:
    """One figure of all peers that have it, by their names."""

    figure: Figure
    peers: Mapping[str, Series]

    @property
    def ours(self) -> Series:
        return self.peers[MESSAGEBUSD.name]

    def times_better(self, than: str) -> float | None:
        """How many times better messagebusd is than this peer, if that one has the figure."""
        if than not in self.peers:
            return None
        pairs = zip(self.ours.values, self.peers[than].values, strict=True)
        if self.figure.better == "more":
            return median(ours / theirs for ours, theirs in pairs)
        return median(theirs / ours for ours, theirs in pairs)


def rows(rounds: Mapping[str, Sequence[Sequence[Figure]]]) -> list[Row]:
    """Put together what belongs together: ``rounds`` are lists of figures, for each peer."""
    found: dict[str, dict[str, Series]] = {}
    for peer, of_peer in rounds.items():
        for figures in zip(*of_peer, strict=True):
            found.setdefault(figures[0].name, {})[peer] = Series(figures)
    return [Row(peers[MESSAGEBUSD.name].figures[0], peers) for peers in found.values()]


def document(machine: Mapping[str, str], found: Sequence[Row]) -> str:
    """The part of RESULTS.md with the servers of our own making."""
    return f"{OWN_PART}\n\n{_OWN}\n\n{_facts(machine)}\n\n{table(found)}\n\n{_NOTES}\n"


def peers_document(machine: Mapping[str, str], found: Sequence[Row], others: Sequence[str]) -> str:
    """The part with other people's."""
    return f"{PEERS_PART}\n\n{_PEERS}\n\n{_facts(machine)}\n\n{table(found, others)}\n"


def _facts(machine: Mapping[str, str]) -> str:
    return "\n".join(f"* {name}: {value}" for name, value in machine.items())


def replaced(old: str, part: str) -> str:
    """The text of RESULTS.md with one of its parts anew."""
    parts = {each.partition("\n")[0]: each for each in (*re.split("(?m)^(?=# )", old), part)}
    found = (parts.get(heading) for heading in (OWN_PART, PEERS_PART, STORES_PART))
    return "\n".join(f"{each.strip()}\n" for each in found if each is not None)


def table(
    found: Sequence[Row], others: Sequence[str] = (PLAIN.name, BARE.name), ours: str = ""
) -> str:
    """As an aligned Markdown table, ``others`` being the peers that are compared with."""
    compared = (heading for name in others for heading in (name, f"× {name}"))
    headings = ("", ours or MESSAGEBUSD.name, "lowest–highest", *compared)
    lines = [(*headings, "CPU µs", "generator", "waited")]
    lines += [_cells(row, others) for row in found]
    # Without columns that have nothing to say.
    used = [index for index, cells in enumerate(zip(*lines[1:], strict=True)) if any(cells)]
    lines = [tuple(line[index] for index in used) for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    rule = ["-" * widths[0], *("-" * (width - 1) + ":" for width in widths[1:])]
    lines.insert(1, tuple(rule))
    return "\n".join(
        f"| {line[0].ljust(widths[0])} | "
        + " | ".join(cell.rjust(width) for cell, width in zip(line[1:], widths[1:], strict=True))
        + " |"
        for line in lines
    )


def to_json(machine: Mapping[str, str], found: Sequence[Row]) -> str:
    """Everything, for machines: all values of all rounds, and what they took."""
    figures = [_object(row) for row in found]
    return json.dumps({"machine": dict(machine), "figures": figures}, indent=1) + "\n"


def _object(row: Row) -> dict[str, Any]:
    return {
        "name": row.figure.name,
        "unit": row.figure.unit,
        "better": row.figure.better,
        "times_better": {
            peer: row.times_better(peer) for peer in row.peers if peer != MESSAGEBUSD.name
        },
        "peers": {
            name: {
                "median": series.value,
                "values": series.values,
                "server_cpu_seconds": series.server_cpu,
                "generator_busy": series.generator,
                "waited": series.waited,
            }
            for name, series in row.peers.items()
        },
    }


def _cells(row: Row, others: Sequence[str]) -> tuple[str, ...]:
    ours, unit = row.ours, row.figure.unit
    series = row.peers.values()
    return (
        f"{row.figure.name} /s" if unit == "/s" else f"{row.figure.name}, {unit}",
        _number(ours.value),
        f"{_number(min(ours.values))}–{_number(max(ours.values))}",
        *(
            cell
            for peer in others
            for cell in (
                _number(row.peers[peer].value) if peer in row.peers else "",
                _number(row.times_better(peer)),
            )
        ),
        _each((each.server_cpu for each in series), lambda seconds: _number(seconds * 1e6)),
        _each((each.generator for each in series), lambda part: _share(part, BUSY_GENERATOR)),
        _each((each.waited for each in series), lambda part: _share(part, DISTURBED)),
    )


def _each(values: Iterable[float | None], text: Callable[[float], str]) -> str:
    return " / ".join(text(value) for value in values if value is not None)


def _number(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _share(part: float, limit: float) -> str:
    return f"{part:.0%}{'!' if part > limit else ''}"


def _median(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return median(known) if known else None
