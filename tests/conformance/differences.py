"""Where this daemon answers otherwise than the recordings, on purpose.

Nothing is left out: every scenario is replayed to its end. One that is listed here must differ from
its recording, and must then answer exactly as its entry says, so that an entry can neither hide
something else nor outlive its reason.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any

from tests.conformance.scenarios import Scenario, Step, expand

Amend = Callable[[list[Step]], None]


@dataclass(frozen=True, slots=True)
class Difference:
    """Why an answer differs: the specification's row, the reason, and what is expected instead."""

    spec: str
    reason: str
    amend: Amend

    def amended(self, scenario: Scenario) -> Scenario:
        """The scenario as it is expected to go here."""
        steps = deepcopy(scenario.steps)
        self.amend(steps)
        return replace(scenario, steps=steps)


@dataclass(frozen=True, slots=True)
class Limit:
    """Settings that a scenario needs beyond the defaults, and the row that makes them settings."""

    spec: str
    settings: Mapping[str, Mapping[str, Any]]


# -- what an answer is instead -----------------------------------------------------------------

POLL_HEADERS = {
    "cache-control": "must-revalidate, private, max-age=0",
    "expires": "0",
    "pragma": "no-cache",
}
JSON_HEADERS = {**POLL_HEADERS, "content-type": "application/json; charset=utf-8"}
STREAM_HEADERS = {
    **POLL_HEADERS,
    "content-type": "text/plain; charset=utf-8",
    "x-content-type-options": "nosniff",
}


def _json(*messages: Step, held: str = "no", connection: str = "open", **headers: str) -> Step:
    return {
        "status": 200,
        "held": held,
        "framing": "length",
        "connection": connection,
        "headers": {**JSON_HEADERS, **headers},
        "headers_absent": ["x-content-type-options"],
        "messages": list(messages),
    }


def _stream(*chunks: tuple[str, list[Step]], held: str) -> Step:
    open_end = held == "still_open"
    return {
        "status": 200,
        "held": held,
        "framing": "chunked",
        "connection": "dropped_by_client" if open_end else "closed",
        "headers": STREAM_HEADERS,
        "chunks": [{"when": when, "messages": messages} for when, messages in chunks],
        "terminated": not open_end,
    }


def _refusal(status: int, **headers: str) -> Step:
    return {"status": status, "held": "no", "connection": "open", "headers": headers}


def _message(global_id: int, message_id: int, channel: str, data: Any) -> Step:
    return {
        "global_id": global_id,
        "message_id": message_id,
        "channel": channel,
        "data": data,
    }


def _status(**last_ids: int) -> Step:
    """A status; the names are given without their slash."""
    return _message(-1, -1, "/__status", {f"/{name}": last for name, last in last_ids.items()})


def _instead(outcomes: Mapping[int, Step]) -> Amend:
    """Expect these outcomes at these steps."""

    def amend(steps: list[Step]) -> None:
        for index, outcome in outcomes.items():
            steps[index]["expect"] = outcome
            steps[index].pop("accept", None)

    return amend


IDLE_STREAM = _stream(("immediate", []), ("timeout", []), held="until_timeout")
ENDED_STREAM = _stream(("immediate", []), held="no")
REFUSED = {"error": "RequestError"}


# -- limits ------------------------------------------------------------------------------------

LIMITS: dict[str, Limit] = {
    # Refused at start: clients compare the type as a string.
    "extra_content_type": Limit("2.4", {"poll": {"extra_response_headers": {}}}),
    "hundreds_of_channels_by_form": Limit("2.9", {"poll": {"max_channels": 600}}),
    "hundreds_of_channels_by_json": Limit("2.9", {"poll": {"max_channels": 600}}),
    "large_request_body": Limit("2.9", {"poll": {"max_body": 1 << 20}}),
    "long_client_id": Limit("2.9", {"poll": {"max_client_id": 1000}}),
    "long_name": Limit("2.9", {"poll": {"max_channel": 1000}}),
    # A mebibyte of text is two bytes more as JSON.
    "one_megabyte_backlog": Limit("3.1", {"backend": {"max_data_size": (1 << 20) + 2}}),
    "one_megabyte_live_unchunked": Limit("3.1", {"backend": {"max_data_size": (1 << 20) + 2}}),
    "thousands_of_channels_by_form": Limit("2.9", {"poll": {"max_channels": 4097}}),
    "thousands_of_channels_by_json": Limit("2.9", {"poll": {"max_channels": 5000}}),
}


# Intervals in seconds, where the recorded one is too short for a loaded machine. Everything that is
# checked about time is relative to the interval.
INTERVALS = {
    "burst_while_waiting": 5.0,  # forty publications must fit into one poll
}


# -- scenarios that clients rely on ------------------------------------------------------------

OVER_CAPACITY = (
    "a client that can read a stream gets one that ends at once: it would re-poll ten times a "
    "second on JSON with data, and the Ruby library's client never reads it"
)

EXCEPTIONS: dict[str, Difference] = {
    "full_house_same_client": Difference("2.3", OVER_CAPACITY, _instead({4: ENDED_STREAM})),
    "hidden_live_seen_at_next_poll": Difference(
        "2.5",
        "a parked poll whose live messages were filtered ends with a status instead of []",
        _instead({4: _json(_status(foo=1), held="until_timeout", connection="closed")}),
    ),
    "json_structured_position_fails": Difference(
        "2.1",
        "a key whose value cannot be read as a position is ignored, the others are served",
        _instead(dict.fromkeys((3, 4, 5), _json())),
    ),
    "no_room_at_all": Difference("2.3", OVER_CAPACITY, _instead({0: ENDED_STREAM})),
    "nobody_user": Difference(
        "5",
        "user -1 is refused: the Ruby library publishes to it what nobody shall see",
        _instead({3: _refusal(403)}),
    ),
    "room_after_the_timeout": Difference("2.3", OVER_CAPACITY, _instead({3: ENDED_STREAM})),
}


# -- quirks ------------------------------------------------------------------------------------


def _both_stay(steps: list[Step]) -> None:
    """The first poll is still parked when the second has come."""
    steps[4] = {"do": "wait_parked", "id": "old", "expect": {"parked": True}}


ONLY_POST = _refusal(405, allow="POST, OPTIONS")

QUIRKS: dict[str, Difference] = {
    "backlog_size_and_age": Difference(
        "3.1",
        "size and age of a publication are both honoured",
        _instead({3: _json(_message(3, 3, "/foo", "three"))}),
    ),
    "dlp_matches_as_text": Difference(
        "2.1",
        "dlp=t is a parameter, not a text somewhere in the query; anything else is ignored",
        _instead(dict.fromkeys((2, 3), IDLE_STREAM)),
    ),
    "empty_name": Difference(
        "2.1, 3.1",
        "the empty name is no channel: a publish is refused, a polled key ignored",
        _instead({0: REFUSED, 1: _json()}),
    ),
    "equal_seq_from_another_user": Difference(
        "2.7", "a different user cannot take over a client id", _both_stay
    ),
    "extra_content_type": Difference(
        "2.4", "the content type is not configurable", _instead({0: _json()})
    ),
    "five_megabyte_form": Difference(
        "2.9", "a body beyond the limit is a 413, not a failure", _instead({2: _refusal(413)})
    ),
    "float_ids": Difference(
        "3.1, 5",
        "ids are integers or strings: a user 7.0 is the text",
        _instead({2: _json(_status(foo=2))}),
    ),
    "form_brackets_are_structure": Difference(
        "2.1",
        "a form's keys are channels as they stand, with brackets too",
        _instead({1: _json(_message(1, 1, "/foo[1]", "in brackets")), 2: _json()}),
    ),
    "get_with_json_body": Difference(
        "2.1", "methods other than POST and OPTIONS are not allowed", _instead({3: ONLY_POST})
    ),
    "global_channel_live_to_a_site": Difference(
        "3.1",
        "/global/ channels reach all sites, live as well",
        _instead(
            {
                5: _stream(
                    ("immediate", []),
                    ("step:2", [_message(1, 1, "/global/foo", "from a")]),
                    ("step:3", [_message(2, 2, "/global/foo", "from nowhere")]),
                    ("step:4", [_message(3, 1, "/foo", "on a")]),
                    ("timeout", []),
                    held="until_timeout",
                )
            }
        ),
    ),
    "head_is_a_poll": Difference(
        "2.1",
        "methods other than POST and OPTIONS are not allowed",
        _instead(dict.fromkeys((0, 1), ONLY_POST)),
    ),
    "http_1_0_misreported_held": Difference(
        "2.3",
        "the request's real HTTP version decides",
        _instead(
            {
                2: _json(
                    _message(1, 1, "/foo", "one"),
                    _message(2, 2, "/foo", "two"),
                    connection="closed",
                )
            }
        ),
    ),
    "json_array_of_pairs": Difference(
        "2.1",
        "a body that is no object has no keys: it is malformed",
        _instead(dict.fromkeys((3, 4), _refusal(400))),
    ),
    "json_invalid_utf8": Difference(
        "2.1", "JSON is UTF-8, anything else is malformed", _instead({1: _refusal(400)})
    ),
    "nesting_beyond_reading": Difference(
        "3.1",
        "what no Ruby reader of the store could read is refused when it is published",
        _instead(
            {
                1: REFUSED,
                2: {"message_id": 2},
                3: _json(
                    _message(1, 1, "/foo", expand({"$nested": {"depth": 99}})),
                    _message(2, 2, "/foo", "after"),
                ),
                4: _json(_message(2, 2, "/foo", "after")),
                5: _json(),
            }
        ),
    ),
    "nesting_beyond_reading_live": Difference(
        "3.1",
        "what no Ruby reader of the store could read is refused when it is published",
        _instead(
            {
                2: REFUSED,
                3: {"message_id": 1},
                4: _stream(
                    ("immediate", []),
                    ("step:3", [_message(1, 1, "/foo", "after")]),
                    ("timeout", []),
                    held="until_timeout",
                ),
            }
        ),
    ),
    "no_room_after_disconnect": Difference(
        "2.3, 2.7",
        "a client that went away leaves its place at once",
        _instead(dict.fromkeys((3, 6), IDLE_STREAM)),
    ),
    "same_client_id_on_two_sites": Difference(
        "2.7",
        "client ids are told apart by site",
        _instead(
            {
                6: _stream(
                    ("immediate", []),
                    ("step:4", [_message(1, 1, "/foo", "on a")]),
                    held="still_open",
                )
            }
        ),
    ),
    "site_not_live_without_sites": Difference(
        "3.1",
        "names with the site separator are refused",
        _instead({1: {"parked": False}, 3: _refusal(400)}),
    ),
    "site_readable_without_sites": Difference(
        "3.1",
        "names with the site separator are refused: a site's channel is for that site",
        _instead(dict.fromkeys((1, 2), _refusal(400))),
    ),
    "site_separator_in_name": Difference(
        "3.1",
        "names with the site separator are refused",
        _instead({0: REFUSED, 1: _refusal(400)}),
    ),
    "thousands_of_channels_by_form": Difference(
        "2.9",
        "the number of channels is a setting; forms have no limit of their own",
        _instead({2: _json(_message(1, 1, "/n/4095", "last"))}),
    ),
    "timer_of_turned_away_poll": Difference(
        "2.7",
        "cleanup is by object: a poll that was turned away does not make the next one deaf",
        _instead(
            {
                7: _stream(
                    ("immediate", []),
                    ("step:6", [_message(1, 1, "/foo", "lost")]),
                    ("timeout", []),
                    held="until_timeout",
                )
            }
        ),
    ),
}


# -- on one store only -------------------------------------------------------------------------


def _as_on_redis(steps: list[Step]) -> None:
    """Expect what was recorded on Redis."""
    for step in steps:
        if "on_redis" in step:
            step["expect"] = step["on_redis"]


LARGE = Difference(
    "3.4", "payloads of 8000 bytes and more are stored, and announced by their id", _as_on_redis
)

# By store and name; these go before the entries above.
ON_STORES: dict[tuple[str, str], Difference] = {
    ("postgres", "backlog_age_zero"): Difference(
        "3.2",
        "the last id does not fall when the messages are trimmed away",
        _instead({3: _json(_status(foo=2))}),
    ),
    ("postgres", "global_channel_live_to_a_site"): Difference(
        "3.1",
        "/global/ channels reach all sites, live as well",
        _instead(
            {
                5: _stream(
                    ("immediate", []),
                    ("step:2", [_message(1, 1, "/global/foo", "from a")]),
                    ("step:3", [_message(2, 2, "/global/foo", "from nowhere")]),
                    ("step:4", [_message(3, 3, "/foo", "on a")]),
                    ("timeout", []),
                    held="until_timeout",
                )
            }
        ),
    ),
    ("postgres", "one_megabyte_backlog"): LARGE,
    ("postgres", "one_megabyte_live_unchunked"): LARGE,
}
