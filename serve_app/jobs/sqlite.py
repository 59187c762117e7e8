"""Jobs in a file of SQLite, for the processes of one node."""

import os
import sqlite3
import time
from pathlib import Path
from typing import Any

from serve_app.errors import StorageFull, StoreUnavailable
from serve_app.jobs.database import TIMEOUT_S, Connection, Row
from serve_app.jobs.schema import migrate


class SqliteConnection(Connection[sqlite3.Connection]):
    """A connection to the database in a file, which is created once. Raises ValueError if the library is too old."""

    driver_errors = sqlite3.Error

    def __init__(self, path: Path, *, reads_only: bool, timeout_s: float = TIMEOUT_S) -> None:
        if sqlite3.sqlite_version_info < (3, 35):
            raise ValueError(f"jobs need SQLite 3.35 or later; this Python has {sqlite3.sqlite_version}")
        self._path = path
        self._reads_only = reads_only
        self._timeout_s = timeout_s
        self._file: tuple[int, int] | None = None
        self._may_create = True
        self._is_durable = True

    def begin(self, *, durable: bool) -> None:
        connection = self._opened()
        if durable != self._is_durable and not self._reads_only:
            connection.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            self._is_durable = durable
        connection.execute("BEGIN" if self._reads_only else "BEGIN IMMEDIATE")

    def rows(self, sql: str, /, **values: Any) -> list[Row]:
        assert self._connection is not None
        cursor = self._connection.execute(sql, values)
        names = [column[0] for column in cursor.description or ()]
        return [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]

    def commit(self) -> None:
        assert self._connection is not None
        self._connection.execute("COMMIT")

    def rollback(self) -> None:
        if self._connection is not None and self._connection.in_transaction:
            self._connection.execute("ROLLBACK")

    def translated(self, error: Exception) -> Exception:
        code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_ERROR) & 0xFF
        if code == sqlite3.SQLITE_FULL:
            return StorageFull("The disk has no room for the database of jobs; try again later.")
        if code in (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED):
            return StoreUnavailable("The store of jobs is locked; try again later.")
        if code in (sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISUSE):
            return error
        self.close()
        return StoreUnavailable()

    def _opened(self) -> sqlite3.Connection:
        """The connection, opened anew if the path leads to another file: what is written to a deleted one is lost."""
        if self._connection is not None and self._file != self._current_file():
            self.close()
        return super()._opened()

    def _open(self) -> None:
        # A database that vanishes from a running server comes back; an empty one in its place would lose all jobs.
        mode = "rwc" if self._may_create else "rw"
        self._connection = sqlite3.connect(
            f"{self._path.absolute().as_uri()}?mode={mode}",
            uri=True,
            isolation_level=None,  # transactions are begun and ended by the statements here
            timeout=self._timeout_s,
            check_same_thread=False,
        )
        self._switch_to_wal(self._connection)
        self._connection.execute("PRAGMA foreign_keys = ON")
        self._connection.execute("PRAGMA synchronous = FULL")
        self._is_durable = True
        self._connection.execute("BEGIN IMMEDIATE")
        migrate(self)
        self._connection.execute("COMMIT")
        if self._reads_only:
            self._connection.execute("PRAGMA query_only = ON")
        self._file, self._may_create = self._current_file(), False

    def _switch_to_wal(self, connection: sqlite3.Connection) -> None:
        """Where several processes make a database at the same time, SQLite does not wait for the one that switches it."""
        give_up_s = time.monotonic() + self._timeout_s
        while True:
            try:
                connection.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_BUSY or time.monotonic() > give_up_s:
                    raise
                time.sleep(0.01)

    def _current_file(self) -> tuple[int, int] | None:
        try:
            status = os.stat(self._path)
        except OSError:
            return None
        return status.st_dev, status.st_ino
