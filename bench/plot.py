"""The figures that decide, side by side: ``peers.svg``. Needs matplotlib (``make bench-peers``)."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from bench.report import Row
from bench.servers import MESSAGEBUSD

FILE = Path(__file__).with_name("peers.svg")
_OURS, _OTHERS = "#0b7285", ("#adb5bd", "#868e96", "#495057")


class Panel(NamedTuple):
    """One figure: its name in the table as it begins, a title, and which way is better."""

    subject: str
    title: str
    better: str = "more is better"


PANELS = (
    Panel("parked stream, resident, 1,000 to", "memory of a parked stream, B", "less is better"),
    Panel("connect and park", "connect and park /s"),
    Panel("fan-out to 1,000, deliveries", "fan-out to 1,000: deliveries /s"),
    Panel("fan-out to 10,000, deliveries", "fan-out to 10,000: deliveries /s"),
    Panel("8 publishers to 1,000", "8 publishers to 1,000: deliveries /s"),
    Panel("10 publishes/s to 1,000, deliveries, p99", "10 /s to 1,000: p99, ms", "less is better"),
    Panel("empty poll", "empty polls /s"),
    Panel("publish, 64 at a time", "publishes over HTTP /s"),
)


def draw(found: Sequence[Row], others: Sequence[str], file: Path = FILE) -> None:
    """Draw those panels for which there are figures."""
    import matplotlib as mpl  # large, and only this needs it
    from matplotlib.figure import Figure

    mpl.rcParams |= {"svg.hashsalt": "messagebusd", "svg.fonttype": "none", "font.size": 9}
    rows = [
        (panel, row)
        for panel in PANELS
        for row in found
        if row.figure.name.startswith(panel.subject)
    ]
    colors = dict(zip((MESSAGEBUSD.name, *others), (_OURS, *_OTHERS), strict=False))
    columns = 4
    lines = -(-len(rows) // columns)
    figure = Figure(figsize=(3 * columns, 2.1 * lines), layout="constrained")
    for place, (panel, row) in enumerate(rows, start=1):
        axes = figure.add_subplot(lines, columns, place)
        names = [name for name in (MESSAGEBUSD.name, *others) if name in row.peers]
        values = [row.peers[name].value for name in names]
        bars = axes.barh(names, values, color=[colors[name] for name in names], height=0.6)
        axes.bar_label(
            bars,
            [f"{value:,.3g}" if value < 100 else f"{value:,.0f}" for value in values],
            padding=3,
        )
        axes.set_title(f"{panel.title}\n({panel.better})", fontsize=9, loc="left")
        axes.set_xlim(0, 1.35 * max(values))
        axes.invert_yaxis()
        axes.xaxis.set_visible(False)
        axes.spines[["top", "right", "bottom"]].set_visible(False)
        axes.tick_params(left=False)
    figure.savefig(file, metadata={"Date": None})
