"""What SQLite and PostgreSQL have in common here: a connection with a thread of its own, transactions, and what happens when the
database is locked or gone.

The statements are the same for both (`sql_store.py`); they name their values as `:name`.
"""

import asyncio
import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, Generic, Protocol, TypeVar

from serve_app.errors import StoreUnavailable

log = logging.getLogger("ray.serve")

Row = Mapping[str, Any]
Result = TypeVar("Result")


class DriverConnection(Protocol):
    """A connection of a database's driver."""

    def close(self) -> None: ...


Driver = TypeVar("Driver", bound=DriverConnection)

TIMEOUT_S = 5.0
"""How long a statement waits for a lock, and a connection for an answer, seconds."""


class Transaction(ABC):
    """Runs statements, of which either all or none take effect."""

    FOR_UPDATE: ClassVar[str] = ""
    """Ends a SELECT whose rows nobody else may change until the end of the transaction."""
    SKIP_LOCKED: ClassVar[str] = ""
    """The same, without the rows that somebody else has locked."""
    NOW: ClassVar[str] = ":now_s"
    """The time, as an expression."""

    @abstractmethod
    def rows(self, sql: str, /, **values: Any) -> list[Row]:
        """Execute one statement and return its rows."""

    def first(self, sql: str, /, **values: Any) -> Row | None:
        """The first row, if there is one."""
        rows = self.rows(sql, **values)
        return rows[0] if rows else None

    def one(self, sql: str, /, **values: Any) -> Row:
        """The only row."""
        (row,) = self.rows(sql, **values)
        return row


class Connection(Transaction, Generic[Driver]):
    """A connection that is opened when it is needed, and again when it was lost. Used by one thread at a time."""

    driver_errors: ClassVar[type[Exception] | tuple[type[Exception], ...]]

    _connection: Driver | None = None
    """The driver's, while it is open."""

    @abstractmethod
    def _open(self) -> None:
        """Set `_connection` to one whose schema is up to date; it is closed if this raises."""

    def _opened(self) -> Driver:
        """The connection, opened if need be."""
        if self._connection is None:
            try:
                self._open()
            except BaseException:
                self.close()
                raise
        assert self._connection is not None
        return self._connection

    @abstractmethod
    def begin(self, *, durable: bool) -> None:
        """Begin a transaction, on an open and valid connection. What it commits is on disk if `durable`."""

    @abstractmethod
    def commit(self) -> None: ...

    @abstractmethod
    def rollback(self) -> None:
        """Undo the transaction, whatever is left of it."""

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    @abstractmethod
    def translated(self, error: Exception) -> Exception:
        """The error of this package for one of the driver's. Closes the connection if it may be broken."""

    def transact(self, work: Callable[[Transaction], Result], *, durable: bool) -> Result:
        """Run `work` in a transaction. Raises what it raises, StoreUnavailable and StorageFull."""
        try:
            self.begin(durable=durable)
            try:
                result = work(self)
                self.commit()
            except BaseException:
                self.rollback()
                raise
            return result
        except self.driver_errors as error:
            translated = self.translated(error)
            log.warning("the store of jobs: %s", error)
            raise translated from error


class Lane:
    """A connection and its thread: one call at a time, in the order in which they come."""

    def __init__(self, connection: Connection[Any], name: str) -> None:
        self._connection = connection
        self._thread = ThreadPoolExecutor(1, thread_name_prefix=name)
        self._failed_at_s = float("-inf")

    async def run(self, work: Callable[[Transaction], Result], *, durable: bool = False) -> Result:
        """Run `work` in a transaction. Raises what it raises, StoreUnavailable and StorageFull."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, self._transact, work, durable, time.monotonic())

    def _transact(self, work: Callable[[Transaction], Result], durable: bool, called_at_s: float) -> Result:
        # While one call found out that the store is unavailable, others have waited as long. They do not wait again one by one.
        if called_at_s < self._failed_at_s:
            raise StoreUnavailable()
        try:
            return self._connection.transact(work, durable=durable)
        except StoreUnavailable:
            self._failed_at_s = time.monotonic()
            raise

    async def close(self) -> None:
        """Wait for calls in progress, then disconnect."""
        await asyncio.get_running_loop().run_in_executor(self._thread, self._connection.close)
        self._thread.shutdown(wait=False)


class Database:
    """Two connections: one that writes, and one that reads meanwhile."""

    def __init__(self, connect: Callable[[bool], Connection[Any]]) -> None:
        """`connect(reads_only)` makes a connection."""
        self._writer = Lane(connect(False), "jobs-writer")
        self._reader = Lane(connect(True), "jobs-reader")

    async def write(self, work: Callable[[Transaction], Result], *, durable: bool = True) -> Result:
        """Run `work` in a transaction that may write. Without `durable` a power failure may undo it."""
        return await self._writer.run(work, durable=durable)

    async def read(self, work: Callable[[Transaction], Result]) -> Result:
        """Run `work` in a transaction that sees one state of the database."""
        return await self._reader.run(work)

    async def close(self) -> None:
        """Wait for calls in progress, then disconnect."""
        await self._writer.close()
        await self._reader.close()
