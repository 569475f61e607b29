"""Commands that talk to a daemon: publish, tail, backlog, last-id, channels, clients."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterable, Sequence

import click
import msgspec

from messagebusd.cli.api import PAGE_SIZE, Api, Page, Query, api_options, printable, site_option
from messagebusd.cli.tail import tail

_INTEGER = re.compile(r"-?(0|[1-9][0-9]*)")


def identifier(text: str) -> int | str:
    """An id as the audience means it: the integer 7 and the text "7" are different users."""
    return int(text) if _INTEGER.fullmatch(text) else text


def _data(text: str) -> msgspec.Raw:
    """Check the JSON and keep it as it is: numbers must arrive as they were written."""
    content = sys.stdin.buffer.read() if text == "-" else text.encode()
    try:
        msgspec.json.decode(content)
    except msgspec.DecodeError as error:
        if not content.strip():
            reason = "is not JSON: there is nothing"
        elif content.lstrip()[:1] in (b"{", b"[", b'"'):
            reason = f"is not JSON: {error}"
        else:
            reason = f"is not JSON: {error}. Text needs quotes of its own: '\"hello\"'"
        raise click.BadParameter(reason, param_hint="JSON") from None
    return msgspec.Raw(content)


@click.command()
@click.argument("channel")
@click.argument("data", metavar="JSON")
@click.option("--user", "users", multiple=True, metavar="ID", help="Only for this user.")
@click.option("--group", "groups", multiple=True, metavar="ID", help="Only for this group.")
@click.option("--client", "clients", multiple=True, metavar="ID", help="Only for this client id.")
@site_option
@click.option(
    "--max-backlog-size",
    type=click.IntRange(min=1),
    metavar="COUNT",
    help="Messages to keep in this channel.",
)
@click.option(
    "--max-backlog-age",
    type=click.IntRange(min=1),
    metavar="SECONDS",
    help="How long to keep this channel's messages.",
)
@api_options
def publish(
    api: Api,
    channel: str,
    data: str,
    users: Sequence[str],
    groups: Sequence[str],
    clients: Sequence[str],
    site: str | None,
    max_backlog_size: int | None,
    max_backlog_age: int | None,
) -> None:
    """Publish JSON to CHANNEL.

    Prints the ids that the message got. "-" in place of JSON reads it from stdin.

    --user, --group and --client can be given several times. The ID of a user or group that is
    written like an integer is one, any other is text: 7 is the integer, 007 is text. A message
    for users and groups reaches those in either; --client narrows that down to these clients.

    \b
    Examples:
      messagebusd publish /news '"hello"'
      messagebusd publish /inbox '{"unread": 3}' --user 42 --user 43
      messagebusd publish /staff '{"alert": true}' --group admins --max-backlog-age 3600
      messagebusd publish /level -- -7
      generate-report | messagebusd publish /reports -
    """
    message: dict[str, object] = {"channel": channel, "data": _data(data)}
    options: dict[str, object] = {
        "user_ids": [identifier(user) for user in users],
        "group_ids": [identifier(group) for group in groups],
        "client_ids": list(clients),
        "site_id": site,
        "max_backlog_size": max_backlog_size,
        "max_backlog_age": max_backlog_age,
    }
    # An empty list is no audience at all, which the API refuses.
    message.update((name, value) for name, value in options.items() if value not in (None, []))
    click.echo(bytes(api.ask("POST", "/api/v1/publish", msgspec.Raw, body=message)))


class _BacklogPage(msgspec.Struct):
    messages: list[msgspec.Raw]
    more: bool


class _MessageId(msgspec.Struct):
    message_id: int


@click.command()
@click.argument("channel")
@click.option(
    "--last-id", type=click.IntRange(min=0), default=0, metavar="ID", help="Only newer messages."
)
@click.option(
    "--limit", type=click.IntRange(min=1), metavar="COUNT", help="So many at most; the oldest."
)
@site_option
@api_options
def backlog(api: Api, channel: str, last_id: int, limit: int | None, site: str | None) -> None:
    """Print the stored messages of CHANNEL.

    One JSON object a line, oldest first.

    \b
    Examples:
      messagebusd backlog /news
      messagebusd backlog /news --last-id 120 --limit 10 | jq .data
    """
    left = limit
    while left is None or left > 0:
        size = PAGE_SIZE if left is None else min(left, PAGE_SIZE)
        query: Query = {"channel": channel, "last_id": last_id, "limit": size, "site_id": site}
        page = api.ask("GET", "/api/v1/backlog", _BacklogPage, query=query)
        for message in page.messages:
            click.echo(bytes(message))
        if not page.more or not page.messages:
            return
        last_id = msgspec.json.decode(page.messages[-1], type=_MessageId).message_id
        if left is not None:
            left -= len(page.messages)


class _LastIds(msgspec.Struct):
    last_ids: dict[str, int]


@click.command("last-id")
@click.argument("channels", metavar="CHANNEL...", nargs=-1, required=True)
@site_option
@api_options
def last_id(api: Api, channels: Sequence[str], site: str | None) -> None:
    """Print the newest message id of each CHANNEL.

    \b
    Examples:
      messagebusd last-id /news
      messagebusd last-id /news /chat/1 --site forum
    """
    body: dict[str, object] = {"channels": list(channels)}
    if site is not None:
        body["site_id"] = site
    last_ids = api.ask("POST", "/api/v1/last_ids", _LastIds, body=body).last_ids
    _print_table([(channel, last_ids.get(channel)) for channel in channels])


class _Channel(msgspec.Struct):
    channel: str
    site_id: str | None
    last_id: int
    backlog_size: int
    backlog_bytes: int
    subscribers: int


class _ChannelsPage(Page):
    channels: list[_Channel]


@click.command()
@api_options
def channels(api: Api) -> None:
    """List the channels that the daemon knows. Needs a key with the scope admin."""
    pages = api.pages("/api/v1/channels", _ChannelsPage)
    _print_items(_Channel, (channel for page in pages for channel in page.channels))


class _Client(msgspec.Struct):
    client_id: str
    user_id: int | str | None
    site_id: str | None
    mode: str
    channels: int
    age: float


class _ClientsPage(Page):
    clients: list[_Client]


@click.command()
@api_options
def clients(api: Api) -> None:
    """List the polls that are waiting, AGE in seconds. Needs a key with the scope admin.

    A user whose id is text, but written like an integer, is shown in quotes: an audience of 7 does
    not reach "7".
    """
    pages = api.pages("/api/v1/clients", _ClientsPage)
    found = (client for page in pages for client in page.clients)
    _print_items(_Client, (msgspec.structs.replace(c, user_id=_told(c.user_id)) for c in found))


def _told(user_id: int | str | None) -> int | str | None:
    """An id, so that text can be told from an integer."""
    is_misleading = isinstance(user_id, str) and _INTEGER.fullmatch(user_id)
    return f'"{user_id}"' if is_misleading else user_id


def _print_items(kind: type[msgspec.Struct], items: Iterable[msgspec.Struct]) -> None:
    header = [name.upper().replace("_", " ") for name in kind.__struct_fields__]
    _print_table([header, *map(msgspec.structs.astuple, items)])


def _print_table(rows: Sequence[Sequence[object]]) -> None:
    cells = [[_cell(value) for value in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        padded = (f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True))
        click.echo("  ".join(padded).rstrip())


def _cell(value: object) -> str:
    if value is None:
        return "-"
    return f"{value:.0f}" if isinstance(value, float) else printable(str(value))


COMMANDS: tuple[click.Command, ...] = (publish, tail, backlog, last_id, channels, clients)
