"""``python -m bench.decisions``: what rules and filters cost for each channel and recipient.

Pure functions, timed in this process; no server takes part.
"""

from __future__ import annotations

import timeit
from collections.abc import Callable

from messagebusd.filters.chain import CallableFilter, ExpressionFilter, Filter, FilterChain
from messagebusd.filters.expressions import Expression
from messagebusd.identity.base import Identity
from messagebusd.protocol.message import Message
from messagebusd.protocol.rules import ChannelRule, ChannelRules

RECIPIENTS = 1000
FRESH = "now - message.data.published_at <= 20"
IN_GROUP = "client.group_ids.exists(g, g == message.data.group)"
OF_CLIENT = "client.client_id != message.data.from"


def allow(message: dict[str, object], client: dict[str, object]) -> bool:
    """A function as small as they come."""
    return message["channel"] != client["client_id"]


def microseconds(call: Callable[[], object], each: int = 1) -> float:
    """The best of some runs, for one of ``each`` things that a call does."""
    timer = timeit.Timer(call)
    number, _ = timer.autorange()
    return min(timer.repeat(repeat=5, number=number)) / number / each * 1e6


def rules(count: int) -> ChannelRules:
    """So many rules for as many channels, users and suffixes."""
    patterns = [
        pattern
        for number in range(count // 4)
        for pattern in (
            f"/topic/{number:05}",
            f"/topic/{number:05}/*",
            f"/user/{{user_id}}/{number:05}",
            f"*/{number:05}/end",
        )
    ]
    return ChannelRules([ChannelRule(each) for each in patterns])


def fan_out(each: Filter) -> float:
    """One filter's part in delivering one message to one of many recipients."""
    chain = FilterChain([each], lambda: None, lambda _: None, lambda: 1000.5)
    viewers = [Identity(user_id=n, group_ids=frozenset({n % 10})) for n in range(RECIPIENTS)]
    data = b'{"published_at":990,"group":7,"from":"me","text":"%b"}' % (b"x" * 500)

    def deliver() -> None:
        message = Message(1, 1, "/a", "/a", None, data)
        for viewer in viewers:
            chain.allow(message, viewer, f"client-{viewer.user_id}")

    return microseconds(deliver, RECIPIENTS)


def main() -> None:
    """Print the figures."""
    for count in (12, 10_000):
        built = rules(count)
        for what, name in (
            ("none", "/nothing/fits"),
            ("an exact one", "/topic/00001"),
            ("one with *", "/topic/00002/typing"),
            ("one with {user_id}", "/user/7/00001"),
        ):
            cost = microseconds(lambda built=built, name=name: built.may_subscribe(name, 7, None))  # type: ignore[misc]
            print(f"{count:6} rules, {what + ' applies':28} {cost:8.2f} µs a channel")
    for what, each in (
        ("same for all", ExpressionFilter("/", Expression(FRESH))),
        ("ten groups", ExpressionFilter("/", Expression(IN_GROUP))),
        ("each client another", ExpressionFilter("/", Expression(OF_CLIENT))),
        ("Python function", CallableFilter("/", "bench.decisions:allow")),
    ):
        print(f"filter, {what:33} {fan_out(each):8.2f} µs a recipient")


if __name__ == "__main__":
    main()
