"""Uploads of jobs: files in a folder beside the store, named like their jobs; with the references of known speakers beside them.

A file is written under another name, flushed to disk and renamed; then the job is created. While that goes on, the writer holds a
lock on the file (`flock`), so that other processes that tidy up see that it is not an orphan. The lock ends with its process,
however that ends. On a shared folder the file system has to support such locks; NFS does.
"""

import asyncio
import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Collection
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

from serve_app.errors import StorageFull, StoreUnavailable
from serve_app.jobs.model import Job, JobError, NewJob, OwnerLimits
from serve_app.jobs.store import NO_LIMITS, JobStore

UPLOAD_LOST = JobError("upload_lost", "The upload of this job, or its references of known speakers, are gone from the disk.")

_PART = ".part"
"""Ends the name of a file that is being written."""

_SPEAKERS = ".speakers"
"""Ends the name of a file with references of known speakers. It is there while the upload is."""

_COPY_BYTES = 1 << 20

_MARK = ".of-"
"""Begins the name of an empty file that says to which store the folder belongs."""

_THREADS = 8

Result = TypeVar("Result")


class Uploads:
    """The folder of uploads."""

    def __init__(self, folder: Path) -> None:
        """The folder is made if need be. Other users may not read it."""
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._folder = folder
        # Copies of large files must not hold up what else runs in threads.
        self._threads = ThreadPoolExecutor(_THREADS, thread_name_prefix="uploads")

    def path(self, job_id: str) -> Path:
        """The file of a job."""
        return self._folder / job_id

    async def bind(self, store: JobStore) -> bool:
        """Whether this is the folder of that store. While the store has no jobs, any folder is; otherwise the one with its mark.

        So a node on which a shared folder is not mounted does not take all uploads for lost.
        """
        identity, is_used = await store.identity()
        mark = self._folder / (_MARK + identity)
        if is_used:
            return await self._run(mark.exists)
        await self._run(mark.touch)
        return True

    async def open(self, job_id: str) -> BinaryIO:
        """The upload of a job, to be read. Raises OSError; FileNotFoundError: it is gone."""
        return await self._made(lambda: self.path(job_id).open("rb"), lambda file: file.close())

    async def speakers(self, job_id: str) -> bytes:
        """The known speakers of a job, if `create` got any. Raises as `open` does."""
        return await self._run((self._folder / (job_id + _SPEAKERS)).read_bytes)

    async def create(
        self, store: JobStore, new: NewJob, source: BinaryIO, limits: OwnerLimits = NO_LIMITS, *, speakers: bytes = b""
    ) -> tuple[Job, bool]:
        """Keep a copy of `source`, from its first byte on, and of the known `speakers`, if any, and create its job. Returns and
        raises what `store.create` does.

        Raises StorageFull if there is no room, or the folder cannot be written. Where no job is made, no file remains. If it is
        unknown whether one was made (StoreUnavailable, cancelled), `tidy` decides.
        """
        try:
            descriptor = await self._made(
                lambda: self._write(new.job_id, source, speakers), lambda descriptor: self._discard(new.job_id, descriptor)
            )
        except OSError as error:
            raise _storage_full(error) from error
        try:
            job, is_new = await store.create(new, limits)
            if not is_new:
                await self.remove([new.job_id])
            return job, is_new
        except StoreUnavailable:
            raise
        except Exception:
            await self.remove([new.job_id])
            raise
        finally:
            # In a thread: what is removed already goes from the disk only now.
            self._threads.submit(os.close, descriptor)

    async def remove(self, job_ids: Collection[str]) -> None:
        """Remove the uploads of jobs that have ended. It does no harm if they are gone."""
        await self._run(self._remove, list(job_ids))

    async def tidy(self, store: JobStore) -> None:
        """Remove files without a job that needs them, and fail jobs without a file. To be called at start and now and then.

        Files that another process is writing, or whose job it is about to create, are left alone.
        """
        active = await store.active_jobs()
        names = await self._run(self._names)
        for job_id in active - names:
            # Its file was there before the job, so it is not about to come; but the listing may be older than the job.
            if not await self._run(self.path(job_id).exists):
                await store.abandon(job_id, UPLOAD_LOST)
                await self.remove([job_id])
        for job_id in {name.removesuffix(_PART).removesuffix(_SPEAKERS) for name in names} - active:
            descriptor = await self._made(partial(self._lock_orphan, job_id), _close_if_open)
            if descriptor is None:
                continue
            try:
                # Only now: a writer that has let go of the lock has created the job, or never will.
                if not any(not job.state.is_ended for job in (await store.get_many([job_id])).values()):
                    await self.remove([job_id])
            finally:
                self._threads.submit(os.close, descriptor)

    def _lock_orphan(self, job_id: str) -> int | None:
        """The locked descriptor of an upload, complete or not; None: it is being written, or gone; then the rest goes too."""
        try:
            # In this order: the name of a part changes, never back.
            descriptor = os.open(self._folder / (job_id + _PART), os.O_RDWR)
        except FileNotFoundError:
            try:
                descriptor = os.open(self.path(job_id), os.O_RDWR)
            except FileNotFoundError:
                self._remove([job_id])
                return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(descriptor)
            return None
        return descriptor

    def _write(self, job_id: str, source: BinaryIO, speakers: bytes = b"") -> int:
        """Copy to the files of a job; return the locked descriptor of its upload."""
        part = self._folder / (job_id + _PART)
        descriptor = self._locked(part)
        try:
            source.seek(0)
            with os.fdopen(os.dup(descriptor), "wb") as file:
                shutil.copyfileobj(source, file, _COPY_BYTES)
                file.flush()
                os.fsync(descriptor)
            if speakers:
                self._write_speakers(job_id, speakers)
            os.replace(part, self.path(job_id))
            self._sync_folder()
        except BaseException:
            self._discard(job_id, descriptor)
            raise
        return descriptor

    def _write_speakers(self, job_id: str, speakers: bytes) -> None:
        descriptor = os.open(self._folder / (job_id + _SPEAKERS), os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(speakers)
            file.flush()
            os.fsync(descriptor)

    def _locked(self, part: Path) -> int:
        """Descriptor of a new file, locked before anybody can take it for an orphan."""
        while True:
            descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX)
                # Between the two calls it may have been tidied away.
                if os.fstat(descriptor).st_nlink:
                    return descriptor
            except BaseException:
                part.unlink(missing_ok=True)
                os.close(descriptor)
                raise
            os.close(descriptor)

    def _sync_folder(self) -> None:
        """Put the names in the folder on disk."""
        descriptor = os.open(self._folder, os.O_RDONLY | os.O_DIRECTORY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)

    def _discard(self, job_id: str, descriptor: int) -> None:
        try:
            self._remove([job_id])
        finally:
            os.close(descriptor)

    def _remove(self, job_ids: list[str]) -> None:
        for job_id in job_ids:
            # The upload last: whatever happens in between, `tidy` finds the rest by it.
            for ending in (_SPEAKERS, _PART, ""):
                (self._folder / (job_id + ending)).unlink(missing_ok=True)

    def _names(self) -> frozenset[str]:
        names = (entry.name for entry in os.scandir(self._folder) if entry.is_file(follow_symlinks=False))
        # Others are the mark, and files of the file system, such as those of NFS for what is open.
        return frozenset(name for name in names if not name.startswith("."))

    async def _run(self, work: Callable[..., Result], *arguments: Any) -> Result:
        """In a thread."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, work, *arguments)

    async def _made(self, make: Callable[[], Result], discard: Callable[[Result], object]) -> Result:
        """What `make` returns, in a thread. That cannot be stopped: if this is cancelled, `discard` gets it when it is there."""
        making = asyncio.ensure_future(self._run(make))
        try:
            return await asyncio.shield(making)
        except asyncio.CancelledError:
            # In a thread: the last byte of a large file may take long to go.
            making.add_done_callback(lambda done: None if done.exception() else self._threads.submit(discard, done.result()))
            raise


def _close_if_open(descriptor: int | None) -> None:
    if descriptor is not None:
        os.close(descriptor)


def _storage_full(error: OSError) -> StorageFull:
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return StorageFull("The disk has no room for the upload; try again later.")
    return StorageFull()
