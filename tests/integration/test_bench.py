"""The benchmark runs and its figures mean what they say. How good they are is not tested."""

from __future__ import annotations

import asyncio
import json
import math
import os
import signal
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bench import peers, plot, report
from bench.crowds import Crowd
from bench.dialects import BUS
from bench.errors import BenchError
from bench.load import WAIT_SECONDS, Caller, Tally, answer_end
from bench.machine import Span
from bench.scenarios import Figure, percentiles, rate
from bench.servers import BARE, MESSAGEBUSD, PLAIN, Server, running

pytestmark = pytest.mark.timeout(300)

REPOSITORY = Path(__file__).parents[2]
RUN_SECONDS = 240
SUBJECTS = (
    "parked stream, resident",
    "connect and park",
    "fan-out to 100",
    "fan-out to 400",
    *(
        f"longest wait during a burst to 400: {asked}"
        for asked in ("poll", "publish", "/metrics", "/readyz")
    ),
    "fan-out of 32 kB to 100, deliveries",
    "fan-out of 32 kB to 100 beside 10",
    "to one of 400",
    "to 400 named of 400",
    "to 4 named of 400",
    "a message to everybody, growth from 100 to 400",
    "a message to one, growth",
    "a message to nobody, growth",
    "an empty poll, growth from 100 to 400",
    "an empty poll, growth from 10 to 1,000 messages",
    "publish to nobody",
    "8 publishers",
    "10 publishes/s",
    "empty poll",
    "poll with 10 messages",
    "long poll",
    "publish, 1 at",
    "publish, 64 at",
    "publish in batches",
)


async def run(*arguments: str) -> tuple[str, str]:
    """``python -m bench``; what it wrote. It must succeed."""
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench",
        *arguments,
        cwd=REPOSITORY,
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        async with asyncio.timeout(RUN_SECONDS):
            stdout, stderr = await process.communicate()
    finally:
        if process.returncode is None:
            process.kill()
            await process.wait()
    assert process.returncode == 0, stderr.decode()
    return stdout.decode(), stderr.decode()


async def test_every_scenario_runs(tmp_path: Path):
    text, progress = await run("--quick", "--json", str(tmp_path / "figures.json"))
    for peer in (MESSAGEBUSD, PLAIN, BARE):
        assert f"round 1 of 1: {peer.name}\n" in progress

    written = json.loads((tmp_path / "figures.json").read_text())
    assert set(written["machine"]) >= {"date", "processor", "python", "packages"}
    figures = {figure["name"]: figure for figure in written["figures"]}
    for subject in SUBJECTS:
        assert any(name.startswith(subject) for name in figures), subject
    for name, figure in figures.items():
        assert name in text
        assert {MESSAGEBUSD.name, PLAIN.name} <= set(figure["peers"])
        for peer in figure["peers"].values():
            assert plausible(figure["unit"], peer), figure
    assert BARE.name in figures["fan-out to 100, deliveries"]["peers"]


def plausible(unit: str, peer: dict[str, Any]) -> bool:
    """Whether these are figures of a server, of whatever speed; memory of few polls is pages."""
    value = peer["median"]
    if unit == "B":
        return 0 <= value < 1e6
    bounds = {"/s": (0.5, 1e8), "ms": (1e-3, 1e5), "exponent": (1e-3, 10.0)}
    lowest, highest = bounds[unit]
    cpu = peer["server_cpu_seconds"]
    assert (cpu is not None) == (unit == "/s")
    return math.isfinite(value) and lowest < value < highest and (cpu is None or cpu > 0)


async def test_one_scenario():
    text, _ = await run("--quick", "--only", "polls")
    rows = [line for line in text.splitlines() if line.startswith("| ")]
    assert [row.split("|")[1].strip() for row in rows[2:]] == [
        "empty poll /s",
    ]


# -- what figures mean ---------------------------------------------------------------------------


def test_a_rate_says_what_it_took():
    figure = rate("x", 100, Span(seconds=2.0, server_cpu=1.0, generator_cpu=1.8, waited=0.5))
    assert figure == Figure("x", "/s", 50.0, "more", 0.01, 0.9, 0.25)


def test_percentiles_are_milliseconds():
    half, most = percentiles("x", [number / 1000 for number in range(100, 0, -1)])
    assert (half.name, half.value) == ("x, p50", pytest.approx(51))
    assert (most.name, most.value) == ("x, p99", pytest.approx(100))
    assert half.better == "less"


def figure(value: float, **options: Any) -> Figure:
    return Figure("x", "/s", value, **options)


def test_ratios_are_taken_within_a_round():
    # Everything was ten times slower in the second round: that is no difference between peers.
    [row] = report.rows(
        {
            MESSAGEBUSD.name: [[figure(100)], [figure(10)], [figure(100)]],
            PLAIN.name: [[figure(50)], [figure(5)], [figure(50)]],
            BARE.name: [],
        }
    )
    assert row.ours.value == 100
    assert row.times_better(PLAIN.name) == 2
    assert row.times_better(BARE.name) is None


def test_better_is_above_one_whatever_is_better():
    less = [figure(1, better="less")]
    more = [figure(2, better="less")]
    [row] = report.rows({MESSAGEBUSD.name: [less], PLAIN.name: [more]})
    assert row.times_better(PLAIN.name) == 2


def test_a_busy_generator_and_busy_neighbours_are_pointed_out():
    calm = figure(1, server_cpu=1e-6, generator=0.85, waited=0.1)
    busy = figure(1, server_cpu=2e-6, generator=0.9, waited=0.2)
    text = report.table(report.rows({MESSAGEBUSD.name: [[calm]], PLAIN.name: [[busy]]}))
    cells = [cell.strip() for cell in text.splitlines()[2].split("|")]
    assert cells[-4:-1] == ["1 / 2", "85% / 90%!", "10% / 20%!"]


# -- the generator counts on nothing -------------------------------------------------------------


def test_answers_in_pieces():
    whole = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX: y\r\n\r\n[]"
    assert [answer_end(whole[:end]) for end in range(len(whole))] == [0] * len(whole)
    assert answer_end(whole) == len(whole)
    assert answer_end(whole.replace(b"Content-L", b"content-l")) == len(whole)


def test_a_refusal_is_no_answer():
    with pytest.raises(BenchError, match="429"):
        answer_end(b"HTTP/1.1 429 Too Many Requests\r\nContent-Length: 0\r\n\r\n")


async def test_a_tally_takes_no_more_than_was_expected():
    tally = Tally("messages")
    waiting = asyncio.create_task(tally.reach(3))
    await asyncio.sleep(0)
    tally.add(2)
    tally.add(1)
    await waiting
    tally.add(2)
    with pytest.raises(BenchError, match="messages: 5 instead of 4"):
        await tally.reach(4)


async def test_a_tally_waits_in_vain_for_what_failed():
    tally = Tally("messages")
    waiting = asyncio.create_task(tally.reach(1))
    await asyncio.sleep(0)
    tally.fail(BenchError("a stream ended"))
    with pytest.raises(BenchError, match="a stream ended"):
        async with asyncio.timeout(WAIT_SECONDS / 2):
            await waiting


# -- the report ----------------------------------------------------------------------------------


def test_each_part_is_written_anew_in_its_place():
    old = "# Results\n\none\n\n## more\n\n# Stores and workers\n\nthree\n"
    text = report.replaced(old, "# Peers\n\ntwo\n")
    assert text == (
        "# Results\n\none\n\n## more\n\n# Peers\n\ntwo\n\n# Stores and workers\n\nthree\n"
    )
    assert report.replaced(text, "# Results\n\nnew").startswith("# Results\n\nnew\n\n# Peers")


def test_the_plot_shows_what_was_measured(tmp_path: Path):
    rounds = {
        name: [[Figure("empty poll", "/s", value)]]
        for name, value in ((MESSAGEBUSD.name, 1234.0), ("gem", 567.0))
    }
    plot.draw(report.rows(rounds), ["nchan", "gem"], tmp_path / "plot.svg")
    text = (tmp_path / "plot.svg").read_text()
    assert "1,234" in text
    assert "567" in text
    assert "empty polls /s" in text
    assert "nchan" not in text


# -- peers ---------------------------------------------------------------------------------------


def test_no_peer_is_an_error_that_says_what_to_install(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "/nowhere")
    monkeypatch.setattr(peers, "NCHAN_MODULE", Path("/nowhere"))
    with pytest.raises(BenchError, match="apt-get install nginx libnginx-mod-nchan"):
        peers.found()


# -- the crowd -----------------------------------------------------------------------------------


@asynccontextmanager
async def crowd() -> AsyncIterator[tuple[Crowd, Server, Caller]]:
    async with running(BARE, *os.sched_getaffinity(0)) as server:
        control = await Caller.open(server)
        try:
            async with Crowd.of(server, control) as found:
                yield found, server, control
        finally:
            control.close()


async def test_the_crowd_comes_receives_and_goes():
    async with crowd() as (streams, server, control):
        await streams.resize(300)  # more than it opens at a time
        request = BUS.publish(server.key, Crowd.channel)
        started = time.perf_counter()
        await control.call(request)
        assert started < await streams.receive(300) < time.perf_counter()
        async with streams.receiving(300) as arrivals:
            await control.call(request)
        assert len(arrivals) == 300
        assert arrivals == sorted(arrivals)
        await streams.idle(10)
        await control.call(request)
        await streams.receive(300)
        await streams.idle(0)
        await streams.resize(2)


async def test_the_crowd_says_what_went_wrong():
    async with crowd() as (streams, server, control):
        await streams.resize(2)
        await control.call(BUS.publish(server.key, Crowd.channel))
        with pytest.raises(BenchError, match="messages received: 2 instead of 1"):
            await streams.receive(1)
        os.kill(server.pid, signal.SIGKILL)
        with pytest.raises(BenchError, match="the crowd says: failed a stream ended"):
            await streams.receive(5)
