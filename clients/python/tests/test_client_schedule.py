"""When to poll and to try again."""

from __future__ import annotations

from typing import Any

import pytest
from client_vectors import cases, load
from hypothesis import given, settings
from hypothesis import strategies as st

from messagebus_client import _schedule
from messagebus_client._schedule import (
    Answered,
    Changed,
    Failed,
    Intervals,
    Outcome,
    RateLimited,
    next_poll,
)


def outcome(fields: dict[str, Any]) -> Outcome:
    match fields["kind"]:
        case "changed":
            return Changed()
        case "answered":
            return Answered(fields["got_data"])
        case "failed":
            return Failed(fields["failures"], fields.get("retry_after_seconds"))
        case "rate_limited":
            return RateLimited(fields["retry_after_seconds"])
        case kind:
            raise AssertionError(kind)


@pytest.mark.parametrize("case", cases("schedule"))
def test_the_next_poll_is_when_the_vectors_say(case: dict[str, Any]) -> None:
    milliseconds = {**load("schedule")["settings"], **case.get("settings", {})}
    intervals = Intervals(
        milliseconds["minPollInterval"] / 1000,
        milliseconds["maxPollInterval"] / 1000,
        milliseconds["callbackInterval"] / 1000,
        milliseconds["backgroundCallbackInterval"] / 1000,
    )
    delay = next_poll(
        outcome(case["outcome"]),
        intervals,
        long_polling=case["long_polling"],
        elapsed=case["elapsed"] / 1000,
        random=case["random"],
    )
    assert delay == pytest.approx(case["delay"] / 1000)


@settings(deadline=None)
@given(
    st.integers(0, 1000),
    st.floats(0, 1, exclude_max=True),
    st.none() | st.floats(0, 3600),
)
def test_a_retry_is_within_its_bounds(
    attempt: int, random: float, retry_after: float | None
) -> None:
    delay = _schedule.after_refusal(attempt, retry_after, 0.2, 5.0, lambda: random)
    if retry_after is None:
        assert 0 <= delay <= min(5.0, 0.2 * 2**attempt)
    else:
        assert retry_after <= delay <= retry_after + 1


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7),
        ("0", 0),
        (None, None),
        ("", None),
        ("-1", None),
        ("soon", None),
        ("Wed, 21 Oct 2015 07:28:00 GMT", None),
        ("inf", None),
        ("nan", None),
        ("1e99", 3600),
    ],
)
def test_retry_after_is_read(header: str | None, seconds: float | None) -> None:
    assert _schedule.retry_after_seconds(header) == seconds
