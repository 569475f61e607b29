"""The command line: ``main`` is what ``messagebusd`` runs.

``daemon.py`` has the commands that run or configure a daemon, ``client.py`` those that talk to one,
``api.py`` how they do. Exit codes: 0 done, 1 a problem, which is said on stderr, 2 wrong usage.
"""

import click

from messagebusd import __version__
from messagebusd.cli.client import COMMANDS as CLIENT_COMMANDS
from messagebusd.cli.daemon import COMMANDS as DAEMON_COMMANDS
from messagebusd.cli.database import db
from messagebusd.cli.doctor import doctor
from messagebusd.cli.explain import explain
from messagebusd.cli.shadow import shadow
from messagebusd.cli.token import token

__all__ = ["main"]


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(__version__, prog_name="messagebusd", message="%(prog)s %(version)s")
def main() -> None:
    """A standalone MessageBus server, and commands to talk to it.

    \b
    messagebusd demo                      see it work in the browser
    messagebusd serve --config bus.toml   run the daemon
    messagebusd publish /news '"hello"'   publish a message to it
    messagebusd tail /news                watch a channel
    """


for command in (*DAEMON_COMMANDS, db, doctor, explain, shadow, token, *CLIENT_COMMANDS):
    main.add_command(command)
