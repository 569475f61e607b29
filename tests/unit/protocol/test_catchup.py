"""Positions against last ids (SPEC 2.2, 2.5)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from messagebusd.protocol.catchup import LastId, Replay, plan


@pytest.mark.parametrize(
    ("position", "last_id", "replay", "status"),
    [
        (0, 0, None, None),
        (5, 5, None, None),
        (0, 5, (0, None), None),
        (4, 5, (4, None), None),
        (6, 5, None, 5),
        (999, 0, None, 0),
        (-1, 5, None, 5),
        (-1, 0, None, 0),
        (-2, 5, (0, 1), None),
        (-4, 5, (0, 3), None),
        (-2, 0, None, None),
        (None, 5, None, None),
    ],
)
def test_plan(position, last_id, replay, status):
    made = plan([("/c", position)], {"/c": LastId(last_id, 9)})
    expected = [] if replay is None else [Replay("/c", *replay)]
    assert list(made.replays) == expected
    assert made.status == ({} if status is None else {"/c": status})


@given(
    st.dictionaries(
        st.sampled_from("abcdef"), st.tuples(st.none() | st.integers(-50, 50), st.integers(0, 40))
    )
)
def test_a_channel_is_either_replayed_or_told_or_neither(channels):
    made = plan(
        [(name, position) for name, (position, _) in channels.items()],
        {name: LastId(last_id, 9) for name, (_, last_id) in channels.items()},
    )
    replayed = [each.channel for each in made.replays]
    assert len(set(replayed)) == len(replayed)
    assert not set(replayed) & set(made.status)
    assert all(made.status[name] == channels[name][1] for name in made.status)
    # in the order asked for
    assert replayed == [name for name in channels if name in replayed]
