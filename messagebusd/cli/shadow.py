"""``messagebusd shadow``: compare our answers with the Ruby library's on real polls."""

from __future__ import annotations

import asyncio
import os
import signal

import click
from aiohttp import web

from messagebusd.cli.api import ApiError, printable, valid_url
from messagebusd.settings import TcpAddress, UnixAddress
from messagebusd.settings.values import parse_address
from messagebusd.shadow.compare import Difference
from messagebusd.shadow.mirror import Mirror
from messagebusd.shadow.tally import Tally


def _address(
    context: click.Context, parameter: click.Parameter, value: str
) -> TcpAddress | UnixAddress:
    try:
        found = parse_address(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from None
    if not isinstance(found, TcpAddress | UnixAddress):
        raise click.BadParameter("must be host:port or unix:/path")
    return found


@click.command()
@click.option(
    "--original",
    required=True,
    callback=valid_url,
    metavar="URL",
    help="Where the Ruby application answers polls.",
)
@click.option(
    "--ours",
    required=True,
    callback=valid_url,
    metavar="URL",
    help="Where the daemon does: its public listener.",
)
@click.option(
    "--listen",
    default="127.0.0.1:8095",
    show_default=True,
    callback=_address,
    metavar="ADDRESS",
    help="Where nginx mirrors polls to.",
)
@click.option(
    "--base-route",
    default="/",
    show_default=True,
    metavar="PATH",
    help="Path under which message-bus/ is found.",
)
@click.option(
    "--rate",
    type=click.IntRange(1, 1000),
    default=5,
    show_default=True,
    help="Polls to compare in a second, at most; the others are skipped.",
)
@click.option(
    "--count", type=click.IntRange(min=1), metavar="N", help="Stop when so many are compared."
)
@click.option("--json", "as_json", is_flag=True, help="Print the result as one JSON object.")
def shadow(
    original: str,
    ours: str,
    listen: TcpAddress | UnixAddress,
    base_route: str,
    rate: int,
    count: int | None,
    as_json: bool,
) -> None:
    """Compare our answers with the Ruby library's, on real polls.

    nginx mirrors polls to here (docs/moving-from-the-gem.md has the lines), and answers them as
    before: nobody waits for this, and nothing breaks if it stops. Both servers are asked the same
    as each poll, without waiting. Runs until Ctrl-C, or for --count polls; differences of a new
    kind are told when they are found. Exits with 0 if something was compared and nothing differs,
    else with 1. Shows channels, ids and sizes, and never cookies, client ids or what messages hold.

    \b
    Example:
      messagebusd shadow --original http://127.0.0.1:3000 --ours http://127.0.0.1:8090 --count 1000
    """
    tally = asyncio.run(_run(original, ours, listen, base_route, rate, count))
    for line in [tally.as_json()] if as_json else tally.lines():
        click.echo(printable(line) if not as_json else line)
    raise click.exceptions.Exit(0 if tally.is_good else 1)


async def _run(
    original: str,
    ours: str,
    listen: TcpAddress | UnixAddress,
    base_route: str,
    rate: int,
    count: int | None,
) -> Tally:
    base_route = f"/{base_route.strip('/')}/" if base_route.strip("/") else "/"
    mirror = Mirror(original, ours, base_route, rate=rate, found=_tell)
    runner = web.AppRunner(mirror.application(), access_log=None)
    await runner.setup()
    stop = asyncio.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        asyncio.get_running_loop().add_signal_handler(number, stop.set)
    try:
        try:
            await _site(runner, listen).start()
        except OSError as error:
            # asyncio names the address once more; a name that is not known has no errno.
            code = error.errno or 0
            reason = os.strerror(code) if code > 0 else error.strerror
            raise ApiError(f"cannot listen on {listen}: {reason}") from None
        click.echo(f"waiting for polls on {listen}", err=True)
        stopping = asyncio.ensure_future(stop.wait())
        while not stop.is_set() and (count is None or mirror.tally.compared < count):
            mirror.progress.clear()
            progress = asyncio.ensure_future(mirror.progress.wait())
            await asyncio.wait((stopping, progress), return_when=asyncio.FIRST_COMPLETED)
            progress.cancel()
        stopping.cancel()
    finally:
        await runner.cleanup()
    return mirror.tally


def _site(runner: web.AppRunner, listen: TcpAddress | UnixAddress) -> web.BaseSite:
    if isinstance(listen, UnixAddress):
        return web.UnixSite(runner, str(listen.path))
    return web.TCPSite(runner, listen.host, listen.port)


def _tell(difference: Difference) -> None:
    click.echo(printable(f"{difference.kind}: {difference.detail}"), err=True)
