"""The store in PostgreSQL: one table, LISTEN and NOTIFY."""

from messagebusd.backends.postgres.backend import PostgresBackend

__all__ = ["PostgresBackend"]
