"""Both stores, each in a fresh database, with a clock that tests set."""

import itertools
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest

from serve_app.jobs.database import Connection, Database
from serve_app.jobs.sql_store import SqlStore
from serve_app.jobs.sqlite import SqliteConnection
from serve_app.jobs.webhook_client import WebhookClient
from serve_app.jobs.webhook_targets import WebhookTargets
from testing.postgres import PostgresServer, binaries, postgres_server
from tests.jobs.receivers import Receiver, receiver
from tests.jobs.stores import LEASE_S, Clock

_schemas = itertools.count()


Connect = Callable[[bool], Connection[Any]]
"""`connect(reads_only)`: another connection to the same database."""


@pytest.fixture(scope="session")
def postgres() -> Iterator[PostgresServer]:
    folder = binaries()
    if folder is None:
        pytest.skip("PostgreSQL is not installed (Debian: `apt-get install postgresql`)")
    pytest.importorskip("psycopg")
    with postgres_server(folder) as server:
        yield server


@pytest.fixture
def sqlite_path(tmp_path: Path) -> Path:
    return tmp_path / "jobs.sqlite"


@pytest.fixture
def postgres_url(postgres: PostgresServer) -> Iterator[str]:
    """A fresh schema."""
    import psycopg

    schema = f"test_{next(_schemas)}"
    with psycopg.connect(postgres.url("public"), autocommit=True) as connection:
        connection.execute(f"CREATE SCHEMA {schema}".encode())
    yield postgres.url(schema)
    with psycopg.connect(postgres.url("public"), autocommit=True) as connection:
        connection.execute(f"DROP SCHEMA {schema} CASCADE".encode())


@pytest.fixture
def sqlite_connect(sqlite_path: Path) -> Connect:
    return lambda reads_only: SqliteConnection(sqlite_path, reads_only=reads_only)


@pytest.fixture
def postgres_connect(postgres_url: str) -> Connect:
    from serve_app.jobs.postgres import PostgresConnection

    return lambda reads_only: PostgresConnection(postgres_url, reads_only=reads_only)


@pytest.fixture(params=["sqlite", "postgres"])
def connect(request: pytest.FixtureRequest) -> Connect:
    """Each test that uses it runs on both databases."""
    connect: Connect = request.getfixturevalue(f"{request.param}_connect")
    return connect


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
async def make_store(connect: Connect, clock: Clock) -> AsyncIterator[Callable[[], SqlStore]]:
    """Makes stores with connections of their own to the same database, as other processes have them."""
    async with AsyncExitStack() as stack:

        def make() -> SqlStore:
            made = SqlStore(Database(connect), lease_s=LEASE_S, clock_s=clock)
            stack.push_async_callback(made.close)
            return made

        yield make


@pytest.fixture
def store(make_store: Callable[[], SqlStore]) -> SqlStore:
    return make_store()


@pytest.fixture
async def opened() -> AsyncIterator[AsyncExitStack]:
    """What is opened here is closed at the end."""
    async with AsyncExitStack() as stack:
        yield stack


@pytest.fixture
async def target(opened: AsyncExitStack) -> Receiver:
    return await opened.enter_async_context(receiver())


@pytest.fixture
async def webhook_client(opened: AsyncExitStack) -> WebhookClient:
    """It may connect to two addresses of this machine."""
    client = WebhookClient(WebhookTargets.of(["127.0.0.1", "127.0.0.2"]))
    opened.push_async_callback(client.close)
    return client
