"""What only the memory store does: its bound, and its snapshot."""

from __future__ import annotations

import os
import random
import stat
import sys
import tracemalloc

import pytest

from messagebusd.backends.base import Retention
from messagebusd.backends.memory import (
    CHANNEL_OVERHEAD_BYTES,
    MESSAGE_OVERHEAD_BYTES,
    MemoryBackend,
)
from messagebusd.errors import SnapshotError
from messagebusd.protocol.message import Audience
from messagebusd.protocol.publication import Publication
from tests.support.clock import FakeClock


def memory(max_bytes=2**26, **options):
    return MemoryBackend(
        options.pop("retention", Retention()),
        max_bytes=max_bytes,
        clock=options.pop("clock", FakeClock()),
        **options,
    )


async def last_ids(backend, *channels):
    found = await backend.last_ids(channels)
    return {channel: last.message_id for channel, last in found.items()}


async def ids(backend, channel):
    page = await backend.backlog(channel, 0, max_messages=10_000, max_bytes=2**30)
    return [each.message_id for each in page.messages]


# -- the bound


async def test_the_oldest_message_of_the_store_goes_first():
    data = b'"%b"' % (b"x" * 1000)
    channels = 3 * (CHANNEL_OVERHEAD_BYTES + 2 * sys.getsizeof("/a"))
    backend = memory(max_bytes=channels + 4 * (1100 + MESSAGE_OVERHEAD_BYTES))
    await backend.open()
    for channel in ("/a", "/b", "/a", "/c", "/b", "/a"):
        await backend.publish(Publication(channel, data))
    assert await ids(backend, "/a") == [2, 3]
    assert await ids(backend, "/b") == [2]
    assert await ids(backend, "/c") == [1]
    assert await last_ids(backend, "/a", "/b") == {"/a": 3, "/b": 2}


async def test_the_bound_holds_whatever_is_published():
    rng = random.Random(1)
    clock = FakeClock()
    backend = memory(max_bytes=50_000, clock=clock, retention=Retention(max_backlog_age=500))
    await backend.open()
    for _ in range(3000):
        await backend.publish(
            Publication(
                f"/{rng.randrange(200)}",
                b'"%b"' % (b"x" * rng.randrange(3000)),
                max_backlog_size=rng.choice([None, None, 0, 1, 3]),
                max_backlog_age=rng.choice([None, None, None, 0, 1, 100]),
            )
        )
        clock.advance(rng.random() * 3)
        assert backend.bytes_used <= 50_000
    held = await backend.channels("", 10_000)
    assert backend.bytes_used >= sum(each.backlog_bytes + CHANNEL_OVERHEAD_BYTES for each in held)


async def test_idle_channels_leave_room_for_messages():
    clock = FakeClock()
    backend = memory(max_bytes=100 * CHANNEL_OVERHEAD_BYTES, clock=clock)
    await backend.open()
    for number in range(500):
        await backend.publish(Publication(f"/{number}", b"1", max_backlog_size=0))
        clock.advance(1)
        await backend.publish(Publication("/busy", b"1", max_backlog_size=50))
    assert len(await ids(backend, "/busy")) == 50
    assert backend.bytes_used <= 100 * CHANNEL_OVERHEAD_BYTES


async def test_long_names_count():
    backend = memory(max_bytes=1_000_000)
    await backend.open()
    before = backend.bytes_used
    await backend.publish(Publication("/" + "x" * 500, b"1", max_backlog_size=0))
    assert backend.bytes_used - before > CHANNEL_OVERHEAD_BYTES + 1000


async def test_many_idle_channels_are_bounded_and_forgotten():
    clock = FakeClock()
    backend = memory(max_bytes=100 * CHANNEL_OVERHEAD_BYTES, clock=clock)
    await backend.open()
    for number in range(500):
        await backend.publish(Publication(f"/{number}", b"1", max_backlog_size=0))
        clock.advance(1)
    assert backend.bytes_used <= 100 * CHANNEL_OVERHEAD_BYTES
    assert await last_ids(backend, "/0", "/499") == {"/0": 0, "/499": 1}


@pytest.mark.parametrize("age", [0, 5])
async def test_channels_that_come_and_go_leave_nothing_behind(age):
    """Also below an old message that stays: the oldest one hides them from eviction."""
    clock = FakeClock()
    backend = memory(clock=clock)
    await backend.open()
    await backend.publish(Publication("/old", b"1"))
    for number in range(5000):
        await backend.publish(Publication(f"/{number}", b"1", max_backlog_age=age))
        clock.advance(1)
    assert len(backend._channels) <= 1 + age + 1
    assert len(backend._oldest) < 200
    assert len(backend._expiring) < 200


async def test_what_is_counted_is_what_is_taken():
    """The overheads are estimates; they must not be far off."""
    backend = memory(max_bytes=2**30)
    await backend.open()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        for number in range(200):
            for _ in range(20):
                await backend.publish(Publication(f"/channel/{number}", b'"%b"' % (b"x" * 100)))
        await backend.last_global_id()
        after, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert 0.7 < backend.bytes_used / (after - before) < 1.4


async def test_audiences_count():
    backend = memory(max_bytes=2**20)
    await backend.open()
    for _ in range(20):
        await backend.publish(Publication("/a", b"1", audience=Audience(range(5000))))
    assert await ids(backend, "/a") == [20]
    assert 5000 * 50 < backend.bytes_used < 2**20


# -- the snapshot


async def reborn(path, clock, **options):
    backend = memory(snapshot_file=path, clock=clock, wall=clock, **options)
    await backend.open()
    return backend


async def test_a_clean_stop_loses_nothing(tmp_path):
    path, clock = tmp_path / "bus.snapshot", FakeClock()
    backend = await reborn(path, clock)
    audience = Audience([1, "x"], None, ["c"])
    for number in range(3):
        await backend.publish(Publication("/a|ä", b'{"n":%d}' % number, site_id="s"))
        await backend.publish(Publication("/b", b'"x|y"', audience=audience))
    await backend.publish(Publication("/short", b"1", max_backlog_age=50))
    await backend.delete_backlog("/b")
    await backend.publish(Publication("/b", b'"x|y"', audience=audience))
    everything = await backend.global_backlog(0, max_messages=100, max_bytes=2**30)
    await backend.close()
    assert stat.S_IMODE(path.stat().st_mode) == 0o600

    clock.advance(20)
    backend = await reborn(path, clock)
    restored = await backend.global_backlog(0, max_messages=100, max_bytes=2**30)
    assert [each.with_audience() for each in restored.messages] == [
        each.with_audience() for each in everything.messages
    ]
    assert await last_ids(backend, "/a|ä$|$s", "/b") == {"/a|ä$|$s": 3, "/b": 4}
    published = await backend.publish(Publication("/b", b"1"))
    assert published[:2] == (5, await backend.last_global_id())
    # ages go on while the daemon is down
    clock.advance(31)
    assert await last_ids(backend, "/short") == {"/short": 0}
    await backend.close()


async def test_no_snapshot_is_an_empty_store(tmp_path):
    backend = await reborn(tmp_path / "none", FakeClock())
    assert await backend.last_global_id() == 0


async def test_what_expired_meanwhile_is_gone_and_the_bound_is_kept(tmp_path):
    path, clock = tmp_path / "bus.snapshot", FakeClock()
    backend = await reborn(path, clock)
    for _ in range(100):
        await backend.publish(Publication("/a", b'"%b"' % (b"x" * 1000)))
    await backend.close()
    backend = await reborn(path, clock, max_bytes=20_000)
    assert backend.bytes_used <= 20_000
    assert (await ids(backend, "/a"))[-1] == 100


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        (lambda text: text[: len(text) // 2], "line"),
        (lambda text: text.rpartition("\n")[0].rpartition("\n")[0] + "\n", "too early"),
        (lambda text: text + "1|1|/x|{}\n", "totals"),
        (lambda text: text.replace("messagebusd-snapshot-1", "other"), "unknown"),
        (lambda text: "", "too early"),
        (lambda text: "garbage\n", "malformed"),
        (lambda text: text.replace('"data"', "data", 1), "line"),
    ],
)
async def test_a_damaged_snapshot_is_refused_by_name_and_line(tmp_path, damage, reason):
    path, clock = tmp_path / "bus.snapshot", FakeClock()
    backend = await reborn(path, clock)
    for _ in range(5):
        await backend.publish(Publication("/a", b"1"))
    await backend.close()
    path.write_text(damage(path.read_text()))
    with pytest.raises(SnapshotError, match=reason) as caught:
        await reborn(path, clock)
    assert str(path) in str(caught.value)
    assert "move it away" in str(caught.value)


async def test_a_folder_that_is_not_there_is_found_out_at_start(tmp_path):
    with pytest.raises(SnapshotError, match="does not exist"):
        await reborn(tmp_path / "nowhere" / "bus.snapshot", FakeClock())


async def test_a_failed_write_keeps_the_old_snapshot(tmp_path):
    path, clock = tmp_path / "bus.snapshot", FakeClock()
    backend = await reborn(path, clock)
    await backend.publish(Publication("/a", b"1"))
    await backend.close()
    backend = await reborn(path, clock)
    await backend.publish(Publication("/a", b"2"))
    os.mkdir(tmp_path / "bus.snapshot.new")
    with pytest.raises(SnapshotError, match="cannot be written"):
        await backend.close()
    os.rmdir(tmp_path / "bus.snapshot.new")
    assert await ids(await reborn(path, clock), "/a") == [1]
