"""Databases that are locked, gone, broken, newer, or whose process is killed."""

import asyncio
import random
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import AsyncExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import StorageFull, StoreUnavailable
from serve_app.jobs.database import Database
from serve_app.jobs.model import JobState
from serve_app.jobs.schema import IncompatibleStore, migrations
from serve_app.jobs.sql_store import SqlStore
from serve_app.jobs.sqlite import SqliteConnection
from serve_app.jobs.store import JobStore
from serve_app.jobs.stores import store_at, store_in
from testing.postgres import PostgresServer
from tests.jobs.conftest import Connect
from tests.jobs.stores import LEASE_S, PROVENANCE, Clock, claimed, queued

SHORT_S = 0.1
"""How long these stores wait for a lock, seconds."""

WRITER = """
import asyncio, sys
from tests.jobs.stores import PROVENANCE, claimed, queued
from serve_app.jobs.model import Completed
from serve_app.jobs.stores import store_at, store_in
from pathlib import Path

async def main():
    where = sys.argv[1]
    store = store_at(where, lease_s=30) if "://" in where else store_in(Path(where), lease_s=30)
    for n in range(1_000_000):
        job_id = await queued(store, webhook_url="https://example.com")
        print("created", job_id, flush=True)
        _, lease = await claimed(store)
        await store.resume(lease, PROVENANCE)
        await store.save(lease, done_s=1.0, parts=[b"x" * 5000, b"y" * 5000])
        if n % 2:
            await store.finish(lease, Completed(b"z" * 20000, 1.0))
            print("finished", job_id, flush=True)

asyncio.run(main())
"""
"""Writes jobs, and says so when a call has returned."""


@contextmanager
def killed_writer(where: str, lines: int) -> Iterator[list[list[str]]]:
    """What a writer said before it was killed."""
    with subprocess.Popen([sys.executable, "-c", WRITER, where], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = [process.stdout.readline() for _ in range(lines)]
        process.kill()
        said += process.stdout.readlines()
    yield [line.split() for line in said if line.endswith("\n")]


async def check_promises(store: JobStore, said: list[list[str]]) -> None:
    """All that was promised is there, and nothing is half there."""
    jobs = await store.get_many([job_id for word, job_id in said if word == "created"])
    for word, job_id in said:
        if word == "finished":
            assert await store.result("alice", job_id) == b"z" * 20000
    unpromised = await store.page("alice", limit=1)
    for job in {**jobs, **{job.job_id: job for job in unpromised}}.values():
        status = await store.status("alice", job.job_id)
        parts = (await store.checkpoint(job.job_id)).parts
        if job.state == JobState.COMPLETED:
            assert (len(status.deliveries), len(parts)) == (1, 0)
            assert await store.result("alice", job.job_id)
        else:
            assert (len(status.deliveries), len(parts)) == (0, job.part_count)
            assert parts in ((), (b"x" * 5000, b"y" * 5000))
    assert len(jobs) == sum(word == "created" for word, _ in said)
    job_id = await queued(store)
    assert job_id in await store.active_jobs()


@pytest.fixture
async def opened() -> AsyncIterator[AsyncExitStack]:
    async with AsyncExitStack() as stack:
        yield stack


@pytest.mark.parametrize("lines", [3, 8])
class TestKills:
    async def test_sqlite(self, tmp_path: Path, opened: AsyncExitStack, lines: int) -> None:
        with killed_writer(str(tmp_path / "jobs"), lines) as said:
            store = store_in(tmp_path / "jobs", lease_s=LEASE_S)
            opened.push_async_callback(store.close)
            await check_promises(store, said)

    async def test_postgres(self, postgres_url: str, opened: AsyncExitStack, lines: int) -> None:
        with killed_writer(postgres_url, lines) as said:
            store = store_at(postgres_url, lease_s=LEASE_S)
            opened.push_async_callback(store.close)
            await check_promises(store, said)


def in_file(path: Path) -> SqlStore:
    """A store that waits for locks but briefly."""
    database = Database(lambda reads_only: SqliteConnection(path, reads_only=reads_only, timeout_s=SHORT_S))
    return SqlStore(database, lease_s=LEASE_S, clock_s=Clock())


class TestSqlite:
    @pytest.fixture
    async def store(self, sqlite_path: Path, opened: AsyncExitStack) -> SqlStore:
        store = in_file(sqlite_path)
        opened.push_async_callback(store.close)
        return store

    async def test_a_locked_database(self, store: SqlStore, sqlite_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """Writes fail together, reads go on, and all is well when the lock is gone."""
        job_id = await queued(store)
        await store.status("alice", job_id)
        other = sqlite3.connect(sqlite_path, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        writer: Any = store._database._writer
        begin, begun = writer._connection.begin, []

        def counted(*, durable: bool) -> None:
            begun.append(durable)
            begin(durable=durable)

        monkeypatch.setattr(writer._connection, "begin", counted)
        failures = await asyncio.gather(*(queued(store) for _ in range(50)), return_exceptions=True)
        assert {type(failure) for failure in failures} == {StoreUnavailable}
        # Those that waited for the first one have waited long enough.
        assert len(begun) == 1
        assert (await store.status("alice", job_id)).queue_position == 1
        other.execute("COMMIT")
        other.close()
        await queued(store)
        assert len(await store.page("alice")) == 2

    async def test_a_database_that_is_gone_for_a_while(self, store: SqlStore, sqlite_path: Path) -> None:
        job_id = await queued(store)
        await store.status("alice", job_id)
        away = sqlite_path.parent / "away"
        away.mkdir()
        for path in sqlite_path.parent.glob("jobs.sqlite*"):
            path.rename(away / path.name)
        for _ in range(2):
            with pytest.raises(StoreUnavailable):
                await queued(store)
            with pytest.raises(StoreUnavailable):
                await store.status("alice", job_id)
        assert not list(sqlite_path.parent.glob("jobs.sqlite*"))
        for path in away.iterdir():
            path.rename(sqlite_path.parent / path.name)
        await queued(store)
        assert len(await store.page("alice")) == 2

    async def test_another_file_in_its_place(self, store: SqlStore, sqlite_path: Path) -> None:
        """As after a backup was restored: nothing goes into the file that is no longer there."""
        before = in_file(sqlite_path)
        job_id = await queued(before)
        await before.close()
        backup = sqlite_path.with_name("backup")
        shutil.copy(sqlite_path, backup)
        await queued(store)
        for path in sqlite_path.parent.glob("jobs.sqlite*"):
            path.unlink()
        backup.rename(sqlite_path)
        assert [job.job_id for job in await store.page("alice")] == [job_id]
        after = await queued(store)
        other = in_file(sqlite_path)
        assert [job.job_id for job in await other.page("alice")] == [after, job_id]
        await other.close()

    @pytest.fixture
    def garbage(self, sqlite_path: Path) -> Path:
        sqlite_path.write_bytes(random.Random(1).randbytes(10_000))
        return sqlite_path

    async def test_a_file_that_is_no_database(self, garbage: Path, store: SqlStore) -> None:
        with pytest.raises(StoreUnavailable):
            await store.open()
        garbage.unlink()  # noqa: ASYNC240
        await store.open()

    async def test_a_full_disk(self, store: SqlStore, sqlite_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """SQLite says the same when a database reaches the size that it is given."""
        job_id = await queued(store)
        _, lease = await claimed(store)
        await store.resume(lease, PROVENANCE)
        writer: Any = store._database._writer
        writer._connection._connection.execute("PRAGMA max_page_count = 60").close()
        with pytest.raises(StorageFull):
            await store.save(lease, done_s=1.0, parts=[b"x" * 1_000_000])
        assert (await store.checkpoint(job_id)).parts == ()
        await store.save(lease, done_s=1.0, parts=[b"x"])
        assert (await store.checkpoint(job_id)).parts == (b"x",)

    async def test_its_files_are_private(self, tmp_path: Path) -> None:
        store = store_in(tmp_path / "jobs", lease_s=LEASE_S)
        await store.open()
        assert (tmp_path / "jobs").stat().st_mode & 0o777 == 0o700
        await store.close()


class TestPostgres:
    @pytest.fixture
    async def store(self, postgres_url: str, opened: AsyncExitStack) -> SqlStore:
        from serve_app.jobs.postgres import PostgresConnection

        store = SqlStore(
            Database(lambda reads_only: PostgresConnection(postgres_url, reads_only=reads_only, timeout_s=SHORT_S)),
            lease_s=LEASE_S,
            clock_s=lambda: None,
        )
        opened.push_async_callback(store.close)
        return store

    async def test_a_locked_table(self, store: SqlStore, postgres_url: str) -> None:
        import psycopg

        job_id = await queued(store)
        await store.status("alice", job_id)
        with psycopg.connect(postgres_url) as other:
            other.execute("LOCK TABLE jobs IN SHARE ROW EXCLUSIVE MODE")
            failures = await asyncio.gather(*(queued(store) for _ in range(50)), return_exceptions=True)
            assert {type(failure) for failure in failures} == {StoreUnavailable}
            assert (await store.status("alice", job_id)).queue_position == 1
        await queued(store)
        assert len(await store.page("alice")) == 2

    async def test_a_server_that_is_gone_for_a_while(self, store: SqlStore, postgres: PostgresServer) -> None:
        job_id = await queued(store)
        await store.status("alice", job_id)
        postgres.stop()
        try:
            for _ in range(2):
                with pytest.raises(StoreUnavailable):
                    await queued(store)
                with pytest.raises(StoreUnavailable):
                    await store.status("alice", job_id)
        finally:
            postgres.start()
        await queued(store)
        assert len(await store.page("alice")) == 2

    async def test_a_connection_that_was_cut(self, store: SqlStore, postgres_url: str) -> None:
        """Between two calls: nobody notices."""
        import psycopg

        await queued(store)
        with psycopg.connect(postgres_url, autocommit=True) as other:
            other.execute("SELECT pg_terminate_backend(pid) FROM pg_stat_activity WHERE application_name = 'parakeet-jobs'")
        await queued(store)
        assert len(await store.page("alice")) == 2

    async def test_its_clock_is_the_databases(self, store: SqlStore) -> None:
        first = await queued(store)
        second = await queued(store)
        jobs = await store.get_many([first, second])
        assert 1_700_000_000 < jobs[first].created_at_s < jobs[second].created_at_s


class TestMigrations:
    async def test_they_run_once_for_all_who_start(self, connect: Connect, opened: AsyncExitStack, clock: Clock) -> None:
        stores = [SqlStore(Database(connect), lease_s=LEASE_S, clock_s=clock) for _ in range(4)]
        for store in stores:
            opened.push_async_callback(store.close)
        await asyncio.gather(*(store.open() for store in stores))
        versions = await stores[0]._database.read(lambda transaction: transaction.rows("SELECT version FROM schema_version"))
        assert [row["version"] for row in versions] == list(migrations())

    async def test_a_newer_database_is_refused(self, connect: Connect, opened: AsyncExitStack, clock: Clock) -> None:
        connection = connect(False)
        connection.transact(
            lambda transaction: transaction.rows("INSERT INTO schema_version VALUES (:version)", version=max(migrations()) + 1),
            durable=True,
        )
        connection.close()
        store = SqlStore(Database(connect), lease_s=LEASE_S, clock_s=clock)
        opened.push_async_callback(store.close)
        with pytest.raises(IncompatibleStore, match="newer"):
            await store.open()

    def test_their_numbers_have_no_gap(self) -> None:
        assert list(migrations()) == list(range(1, len(migrations()) + 1))
