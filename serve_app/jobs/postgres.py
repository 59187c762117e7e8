"""Jobs in PostgreSQL, for the nodes of a cluster. Needs psycopg, which the extra `postgres` installs."""

import re
from functools import cache
from typing import Any

import psycopg
from psycopg.rows import DictRow, dict_row

from serve_app.errors import StorageFull, StoreUnavailable
from serve_app.jobs.database import TIMEOUT_S, Connection, Row
from serve_app.jobs.schema import migrate

MIGRATION_LOCK = 0x7061_7261_6B65
"""Key of the advisory lock under which the schema is changed."""


@cache
def _with_driver_placeholders(sql: str) -> bytes:
    return re.sub(r":([a-z_]\w*)", r"%(\1)s", sql.replace("%", "%%")).encode()


class PostgresConnection(Connection[psycopg.Connection[DictRow]]):
    """A connection to the database of a URL."""

    FOR_UPDATE = " FOR UPDATE"
    SKIP_LOCKED = " FOR UPDATE SKIP LOCKED"
    NOW = "COALESCE(CAST(:now_s AS DOUBLE PRECISION), CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION))"

    driver_errors = psycopg.Error

    def __init__(self, url: str, *, reads_only: bool, timeout_s: float = TIMEOUT_S) -> None:
        self._url = url
        self._timeout_s = timeout_s
        # All of it per transaction, so that a pooler between may give each one another connection.
        limits = f"SET LOCAL lock_timeout = '{timeout_s:.3f}s'; SET LOCAL statement_timeout = '{2 * timeout_s:.3f}s'"
        mode = "ISOLATION LEVEL REPEATABLE READ READ ONLY" if reads_only else "ISOLATION LEVEL READ COMMITTED READ WRITE"
        self._begin = f"BEGIN {mode}; {limits}"

    def begin(self, *, durable: bool) -> None:
        begin = self._begin + ("" if durable else "; SET LOCAL synchronous_commit = off")
        was_open = self._connection is not None
        try:
            self._opened().execute(begin.encode())
        except psycopg.OperationalError:
            # The connection may have been lost since it was used last; nothing of this transaction has happened yet.
            if not was_open:
                raise
            self.close()
            self._opened().execute(begin.encode())

    def rows(self, sql: str, /, **values: Any) -> list[Row]:
        assert self._connection is not None
        cursor = self._connection.execute(_with_driver_placeholders(sql), values)
        return list(cursor.fetchall()) if cursor.description else []

    def commit(self) -> None:
        assert self._connection is not None
        self._connection.execute(b"COMMIT")

    def rollback(self) -> None:
        if self._connection is not None and not self._connection.broken:
            self._connection.execute(b"ROLLBACK")

    def translated(self, error: Exception) -> Exception:
        if isinstance(error, psycopg.IntegrityError | psycopg.DataError):
            return error
        if isinstance(error, psycopg.errors.DiskFull):
            return StorageFull("The disk has no room for the database of jobs; try again later.")
        if isinstance(error, psycopg.errors.LockNotAvailable):
            return StoreUnavailable("The store of jobs is locked; try again later.")
        self.close()
        return StoreUnavailable()

    def _open(self) -> None:
        self._connection = psycopg.connect(
            self._url,
            autocommit=True,  # transactions are begun and ended by the statements here
            row_factory=dict_row,
            prepare_threshold=None,  # prepared statements are lost where a pooler is between
            connect_timeout=max(2, round(self._timeout_s)),
            tcp_user_timeout=round(2000 * self._timeout_s),
            keepalives_idle=round(2 * self._timeout_s),
            application_name="parakeet-jobs",
        )
        self._connection.execute(b"BEGIN")
        self.rows("SELECT pg_advisory_xact_lock(:key)", key=MIGRATION_LOCK)
        migrate(self)
        self._connection.execute(b"COMMIT")
