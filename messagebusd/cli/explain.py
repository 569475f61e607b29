"""``messagebusd explain``: why did somebody get a message, or not?"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

import click
import msgspec

from messagebusd.cli.api import Api, ApiError, Query, node_options, printable, site_option

_PATH = "/api/v1/explain"


class _Fact(msgspec.Struct):
    about: str
    text: str
    at: float | None = None
    until: float | None = None
    worker: int | None = None
    client_id: str | None = None


class _Explanation(msgspec.Struct):
    node: str
    answer: str
    facts: list[_Fact]
    unavailable_workers: list[int] = []


@click.command()
@click.option(
    "--message",
    "message_id",
    required=True,
    type=click.IntRange(min=0),
    metavar="ID",
    help="The message's id in its channel.",
)
@click.option("--channel", required=True, help="Its channel.")
@click.option("--user", metavar="ID", help="Who should have got it.")
@click.option("--client", metavar="ID", help="Only this client.")
@click.option(
    "--group", "groups", multiple=True, metavar="ID", help="A group of the user, if none is known."
)
@site_option
@click.option("--json", "as_json", is_flag=True, help="Print a JSON object for each node.")
@node_options
def explain(
    nodes: Sequence[Api],
    message_id: int,
    channel: str,
    user: str | None,
    client: str | None,
    groups: Sequence[str],
    site: str | None,
    as_json: bool,
) -> None:
    """Say why somebody got a message, or not.

    Tells what is known of the message, of whom it was for, and of the polls that were there, and
    what happens next. A node knows its own polls only: with several, name each with --url. The ID
    of a user is read as JSON if it is: 7 is a number, '"7"' is text. Needs a key with the scope
    admin.

    \b
    Examples:
      messagebusd explain --channel /inbox --message 17 --user 42
      messagebusd explain --channel /news --message 3 --client 3314cf --json
      messagebusd explain --channel /a --message 3 --user 42 --url http://a:8091 --url http://b:8091
    """
    if user is None and client is None:
        raise click.UsageError("name somebody: --user, --client, or both")
    query: Query = {
        "channel": channel,
        "message_id": message_id,
        "user_id": user,
        "client_id": client,
        "group_id": list(groups),
        "site_id": site,
    }
    told: set[tuple[str, str]] = set()
    failed = False
    for node in nodes:
        try:
            if as_json:
                click.echo(bytes(node.ask("GET", _PATH, msgspec.Raw, query=query)))
                continue
            explanation = node.ask("GET", _PATH, _Explanation, query=query)
        except ApiError as error:
            if len(nodes) == 1:
                raise
            error.show()  # the others may know
            failed = True
            continue
        for line in _lines(explanation, told):
            click.echo(line)
    if failed:
        raise click.exceptions.Exit(1)


def _lines(explanation: _Explanation, told: set[tuple[str, str]]) -> Iterator[str]:
    """The answer, then what it is made of; what another node has said already is left out."""
    yield printable(f"{explanation.node}: {explanation.answer}")
    for fact in explanation.facts:
        about = fact.about
        if fact.worker is None and fact.at is None:
            if (about, fact.text) in told:
                continue
            told.add((about, fact.text))
        elif fact.worker is not None:
            about = f"{about} {fact.client_id or fact.worker}"
        yield printable(f"  {about}: {_times(fact)}{fact.text}")
    if explanation.unavailable_workers:
        names = ", ".join(map(str, explanation.unavailable_workers))
        yield f"  missing: what the workers {names} know; they did not answer in time"


def _times(fact: _Fact) -> str:
    if fact.at is None:
        return ""
    return f"{_time(fact.at)}{'' if fact.until is None else f' to {_time(fact.until)}'}, "


def _time(at: float) -> str:
    """In local time, to the millisecond."""
    return f"{time.strftime('%Y-%m-%d %H:%M:%S', time.localtime(at))}.{int(at % 1 * 1000):03}"
