"""What went wrong between us and a PostgreSQL server, in plain words.

Reasons end up in logs and answers: no address, no password, and nothing of what the server says,
which may hold data.
"""

from __future__ import annotations

import os
import socket
import ssl

import asyncpg

from messagebusd.errors import StoreRefused, StoreUnavailable

_REASONS: tuple[tuple[type[BaseException] | tuple[type[BaseException], ...], str], ...] = (
    (TimeoutError, "the server does not answer in time"),
    (asyncpg.QueryCanceledError, "the server gave up a statement that took too long"),
    (asyncpg.LockNotAvailableError, "the table is locked by somebody else"),
    (asyncpg.DeadlockDetectedError, "the server ended a deadlock"),
    (asyncpg.ReadOnlySQLTransactionError, "the server is a read-only replica"),
    (asyncpg.UndefinedTableError, "a table is missing: run `messagebusd db init`"),
    (
        (asyncpg.UndefinedColumnError, asyncpg.DatatypeMismatchError),
        "the table message_bus is not the one that messagebusd knows",
    ),
    (
        asyncpg.InsufficientPrivilegeError,
        "the role lacks a privilege: `messagebusd db init` says what to grant",
    ),
    (asyncpg.InvalidAuthorizationSpecificationError, "the server refuses the user or the password"),
    (asyncpg.InvalidCatalogNameError, "the database does not exist"),
    (asyncpg.TooManyConnectionsError, "the server has no connection left"),
    (asyncpg.DiskFullError, "the server's disk is full"),
    (asyncpg.OutOfMemoryError, "the server is out of memory"),
    (asyncpg.InsufficientResourcesError, "the server lacks resources"),
    (asyncpg.CannotConnectNowError, "the server is starting or stopping"),
    (
        (asyncpg.AdminShutdownError, asyncpg.CrashShutdownError),
        "the server has ended the connection",
    ),
    (asyncpg.DataError, "the server cannot store this message"),
    (asyncpg.IntegrityConstraintViolationError, "the server refuses this message"),
    (socket.gaierror, "the server's name cannot be resolved"),
    (ssl.SSLCertVerificationError, "the server's certificate is not accepted"),
    (ssl.SSLError, "TLS fails"),
    (asyncpg.PostgresConnectionError, "the server has closed the connection"),
)
# What is wrong with the values of a statement, not with the server.
_REFUSALS = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError)
# What passes by itself: a server that is just starting, or busy with a crowd of daemons that are.
# Anything else somebody has to mend.
_PASSING = (
    OSError,  # TimeoutError included
    asyncpg.CannotConnectNowError,
    asyncpg.OperatorInterventionError,
    asyncpg.InsufficientResourcesError,
    asyncpg.PostgresConnectionError,
    asyncpg.InternalClientError,
    asyncpg.InterfaceError,
)
_LASTING = (asyncpg.ClientConfigurationError, ssl.SSLCertVerificationError)
# What asyncpg may raise, and what a socket may. An internal error is what a connection ends with
# that the server closes while nothing is asked of it.
FAILURES = (
    asyncpg.PostgresError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
    OSError,
    EOFError,
)


def describe(error: BaseException) -> str:
    """A failure in a few words."""
    for kinds, reason in _REASONS:
        if isinstance(error, kinds):
            return reason
    match error:
        case asyncpg.PostgresError(sqlstate=str(code)):
            return f"the server reports SQLSTATE {code}"
        case asyncpg.ClientConfigurationError():
            return "the URL cannot be used"
        case OSError(errno=int(number)):
            return f"no connection to the server: {os.strerror(number)}"
    return "the connection to the server is lost"


def is_passing(error: StoreUnavailable) -> bool:
    """Whether it may help to try again soon; ``error`` comes from `translate`."""
    cause = error.__cause__
    return isinstance(cause, _PASSING) and not isinstance(cause, _LASTING)


def translate(error: BaseException) -> StoreUnavailable:
    """A failure as the error that leaves a store."""
    kind = StoreRefused if isinstance(error, _REFUSALS) else StoreUnavailable
    return kind(describe(error))
