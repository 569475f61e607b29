"""What the daemons that share a store tell each other: end these polls, wherever they are.

A command is a message on a channel of our own. Nobody can subscribe to it or publish on it by any
door, and its audience is nobody, for the eyes of Ruby processes that serve polls beside us.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from messagebusd.connection import Connection
from messagebusd.protocol.channels import CONTROL_CHANNEL
from messagebusd.protocol.message import Audience, Id, Message
from messagebusd.protocol.publication import Publication

# A node that was cut off from the store obeys, when it is back, what was said meanwhile: a command
# that is gone by then leaves a poll with rights that somebody has lost. So they are kept for longer
# than any poll waits, and more of them than all applications say in that time.
KEEP_SECONDS = 3600
KEEP_MESSAGES = 10_000


class Selection(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Some polls: those of a client, of a user, of a site; None is any. Ids are compared by type
    as well."""

    client_id: str | None = None
    user_id: Id | None = None
    site_id: str | None = None

    def includes(self, connection: Connection) -> bool:
        """Whether a poll is meant."""
        viewer = connection.viewer
        return (
            (self.client_id is None or connection.client_id == self.client_id)
            and (self.user_id is None or viewer.user_id == self.user_id)
            and (self.site_id is None or viewer.site_id == self.site_id)
        )


class Command(Selection, frozen=True, kw_only=True, omit_defaults=True):
    """End these polls. ``origin`` names the process that says so, and has done it already."""

    op: Literal["disconnect", "invalidate"]
    origin: str

    def publication(self) -> Publication:
        """The command on its way to the others."""
        return Publication(
            CONTROL_CHANNEL,
            msgspec.json.encode(self),
            audience=Audience(user_ids=[-1]),
            max_backlog_size=KEEP_MESSAGES,
            max_backlog_age=KEEP_SECONDS,
        )


def read_command(message: Message) -> Command | None:
    """The command in a message, if it is one: anybody who reaches the store may have sent it."""
    try:
        return msgspec.json.decode(message.data, type=Command)
    except (msgspec.DecodeError, RecursionError):
        return None
