"""Uploads beside the store: nothing half-written, no orphans."""

import asyncio
import errno
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from serve_app.errors import RateLimited, StorageFull, StoreUnavailable
from serve_app.jobs.model import Idempotency, JobState, OwnerLimits
from serve_app.jobs.store import JobStore
from serve_app.jobs.stores import store_in
from serve_app.jobs.uploads import UPLOAD_LOST, Uploads
from tests.jobs.stores import LEASE_S, new_job, queued

WRITER = """
import asyncio, sys
from pathlib import Path
from serve_app.jobs.uploads import Uploads

class Endless:
    def seek(self, at): pass
    def read(self, count):
        print("reading", flush=True)
        sys.stdin.readline()
        return b"x" * 100

Uploads(Path(sys.argv[1]))._write("job_x", Endless())
"""
"""A process that writes an upload and waits in the middle of it."""


@pytest.fixture
def connect(sqlite_connect: Any) -> Any:
    """Uploads do not know which store it is."""
    return sqlite_connect


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "uploads"


@pytest.fixture
def uploads(folder: Path) -> Uploads:
    return Uploads(folder)


def files(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


async def test_an_upload_is_kept_until_it_is_removed(store: JobStore, uploads: Uploads, folder: Path) -> None:
    source = io.BytesIO(b"audio" * 500_000)
    source.seek(7)
    job, is_new = await uploads.create(store, new_job(), source)
    assert is_new
    assert uploads.path(job.job_id).read_bytes() == source.getvalue()
    assert files(folder) == {job.job_id}
    await uploads.remove([job.job_id, "gone"])
    assert files(folder) == set()


async def test_known_speakers_are_there_while_the_upload_is(store: JobStore, uploads: Uploads, folder: Path) -> None:
    job, _ = await uploads.create(store, new_job(), io.BytesIO(b"audio"), speakers=b"Ann")
    assert await uploads.speakers(job.job_id) == b"Ann"
    await uploads.tidy(store)
    assert files(folder) == {job.job_id, f"{job.job_id}.speakers"}
    await uploads.remove([job.job_id])
    assert files(folder) == set()
    (folder / f"{job.job_id}.speakers").write_bytes(b"Ann")
    await store.cancel("alice", job.job_id)
    await uploads.tidy(store)
    assert files(folder) == set()
    for lost in (uploads.open, uploads.speakers):
        with pytest.raises(FileNotFoundError):
            await lost(job.job_id)


async def test_known_speakers_of_a_job_that_was_not_made_go(store: JobStore, uploads: Uploads, folder: Path) -> None:
    with pytest.raises(RateLimited):
        await uploads.create(store, new_job(), io.BytesIO(b"audio"), OwnerLimits(jobs=0), speakers=b"Ann")
    assert files(folder) == set()


async def test_a_repeated_request_leaves_one_file(store: JobStore, uploads: Uploads, folder: Path) -> None:
    first, _ = await uploads.create(store, new_job(idempotency=Idempotency("key", "a")), io.BytesIO(b"audio"))
    second, is_new = await uploads.create(store, new_job(idempotency=Idempotency("key", "a")), io.BytesIO(b"audio"))
    assert (second, is_new) == (first, False)
    assert files(folder) == {first.job_id}


async def test_a_refused_job_leaves_no_file(store: JobStore, uploads: Uploads, folder: Path) -> None:
    with pytest.raises(RateLimited):
        await uploads.create(store, new_job(), io.BytesIO(b"audio"), OwnerLimits(jobs=0))
    assert files(folder) == set()


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT, errno.EROFS])
@pytest.mark.parametrize("call", ["fsync", "replace", "open"])
async def test_a_full_disk_leaves_nothing(
    store: JobStore, uploads: Uploads, folder: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    def fail(*args: Any, **kwargs: Any) -> Any:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(f"serve_app.jobs.uploads.os.{call}", fail)
    with pytest.raises(StorageFull):
        await uploads.create(store, new_job(), io.BytesIO(b"audio"))
    monkeypatch.undo()
    assert files(folder) == set()
    assert await store.active_jobs() == frozenset()


async def test_a_cancelled_upload_leaves_nothing(store: JobStore, uploads: Uploads, folder: Path) -> None:
    class Slow(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            reading.set()
            asyncio.run_coroutine_threadsafe(go_on.wait(), loop).result()
            return super().read(size)

    class Reading(asyncio.Event):
        def set(self) -> None:
            loop.call_soon_threadsafe(super().set)

    loop, reading, go_on = asyncio.get_running_loop(), Reading(), asyncio.Event()
    creating = asyncio.create_task(uploads.create(store, new_job(), Slow(b"audio")))
    await reading.wait()
    creating.cancel()
    with pytest.raises(asyncio.CancelledError):
        await creating
    assert files(folder)
    go_on.set()
    while files(folder):  # noqa: ASYNC110
        await asyncio.sleep(0.005)
    assert await store.active_jobs() == frozenset()


async def test_orphans_are_tidied_away(store: JobStore, uploads: Uploads, folder: Path) -> None:
    kept, _ = await uploads.create(store, new_job(), io.BytesIO(b"audio"))
    ended, _ = await uploads.create(store, new_job(), io.BytesIO(b"audio"))
    await store.cancel("alice", ended.job_id)
    (folder / "job_without_a_row").write_bytes(b"audio")
    (folder / "job_cut_off.part").write_bytes(b"aud")
    (folder / "job_cut_off.speakers").write_bytes(b"Ann")
    (folder / ".nfs0001").write_bytes(b"aud")
    without_a_file = await queued(store)
    (folder / f"{without_a_file}.speakers").write_bytes(b"Ann")
    await uploads.tidy(store)
    assert files(folder) == {kept.job_id, ".nfs0001"}
    assert (await store.status("alice", kept.job_id)).job.state == JobState.QUEUED
    assert (await store.status("alice", without_a_file)).job.error == UPLOAD_LOST


async def test_a_file_whose_job_may_exist_is_left_to_tidy(uploads: Uploads, folder: Path, tmp_path: Path) -> None:
    """The store breaks while it creates the job."""
    store = store_in(tmp_path / "store", lease_s=LEASE_S)

    class Broken:
        has_committed = True

        async def create(self, *args: Any) -> Any:
            if self.has_committed:
                await store.create(*args)
            raise StoreUnavailable()

    broken: Any = Broken()
    made, not_made = new_job(), new_job()
    with pytest.raises(StoreUnavailable):
        await uploads.create(broken, made, io.BytesIO(b"audio"))
    broken.has_committed = False
    with pytest.raises(StoreUnavailable):
        await uploads.create(broken, not_made, io.BytesIO(b"audio"))
    await uploads.tidy(store)
    assert files(folder) == {made.job_id}
    assert await store.active_jobs() == {made.job_id}
    await store.close()


@pytest.fixture
def writer(folder: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in the middle of an upload."""
    with subprocess.Popen([sys.executable, "-c", WRITER, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


async def test_a_file_that_is_being_written_is_left_alone(
    store: JobStore, uploads: Uploads, folder: Path, writer: "subprocess.Popen[bytes]"
) -> None:
    """Until its process is killed."""
    await uploads.tidy(store)
    assert files(folder) == {"job_x.part"}
    writer.kill()
    writer.wait()
    await uploads.tidy(store)
    assert files(folder) == set()
