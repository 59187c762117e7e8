"""Works on jobs: takes them from the store as there is room, transcribes them in the bulk lane, and saves how far it is.

Every ingress replica has a worker. One that dies loses nothing but the windows in flight: its leases end, and others go on from
the checkpoints.
"""

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing, suppress
from dataclasses import dataclass
from typing import TypeVar

from serve_app import __version__
from serve_app.errors import UNFORESEEN, EngineError, SpeechError, StoreUnavailable
from serve_app.events import Done, Event
from serve_app.jobs.model import Completed, Job, JobError, Lease, LeaseLost, Outcome, Provenance, expected_audio_s
from serve_app.jobs.parts import pack_transcript
from serve_app.jobs.progress import JobProgress
from serve_app.jobs.request import JobRequest
from serve_app.jobs.store import JobStore
from serve_app.jobs.uploads import UPLOAD_LOST, Uploads
from serve_app.observe import catalogue
from serve_app.service import JobOptions, SpeechService
from serve_app.settings import ModelSettings, WindowSettings
from serve_app.tasks import stop

log = logging.getLogger("ray.serve")

MAX_RUNNING = 64
"""Maximum jobs of a worker at once. Short ones fill a batch together."""

MIN_RUNNING = 4
"""A job counts with at most this share of `jobs.max_running_audio_s`, so that so many long ones run at once."""

POLL_S = 1.0
"""How often a worker with room looks for jobs that others have made, seconds."""

SAVE_S, RENEW_S = 0.2, 5.0
"""How often new work is saved, and a lease is renewed without any, seconds."""

RETRY_S = 2.0
"""Time until a call of a store that is unavailable is repeated, seconds."""

DEFER_S = 30.0
"""Time until a job whose model is unavailable is tried again, seconds."""

GIVE_UP_S = 86_400.0
"""A job fails if its model is still unavailable so long after it was made, seconds."""

HAND_BACK_S = 5.0
"""How long a worker that stops tries to give its leases back, seconds."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Deferred:
    """The job is to be tried again later: what it needs is unavailable."""

    error: SpeechError


@dataclass(slots=True)
class _Running:
    task: asyncio.Task[None]
    audio_s: float
    """With which the job counts."""


class JobWorker:
    """All calls must come from one event loop."""

    def __init__(self, store: JobStore, uploads: Uploads, service: SpeechService, on_end: Callable[[], None]) -> None:
        """`on_end` is called when a job has ended, as there may be a webhook message then."""
        self._store = store
        self._uploads = uploads
        self._service = service
        self._on_end = on_end
        self._max_audio_s = service.settings.jobs.max_running_audio_s
        self._running: dict[str, _Running] = {}
        self._has_news = asyncio.Event()

    @property
    def running(self) -> int:
        """Jobs that this worker is transcribing."""
        return len(self._running)

    def wake(self) -> None:
        """There may be a job."""
        self._has_news.set()

    def drop(self, job_id: str) -> None:
        """The job was cancelled: stop the work on it, if it is here."""
        if job_id in self._running:
            self._running[job_id].task.cancel()

    async def run(self) -> None:
        """Until it is cancelled; then hand back every job."""
        try:
            while True:
                self._has_news.clear()
                claimed = None
                if self._has_room:
                    with suppress(StoreUnavailable):
                        claimed = await self._store.claim()
                if claimed is not None:
                    self._start(*claimed)
                else:
                    with suppress(TimeoutError):
                        # Not wait_for: that of Python 3.11 may lose a cancellation.
                        async with asyncio.timeout(POLL_S):
                            await self._has_news.wait()
        finally:
            await stop(*(running.task for running in self._running.values()))

    @property
    def _has_room(self) -> bool:
        audio_s = sum(running.audio_s for running in self._running.values())
        return len(self._running) < MAX_RUNNING and audio_s < self._max_audio_s

    def _start(self, job: Job, lease: Lease) -> None:
        length_s = expected_audio_s(job.audio_s, job.upload_bytes)
        audio_s = min(max(0.0, length_s - job.done_s), self._max_audio_s / MIN_RUNNING)
        task = asyncio.create_task(self._work(job, lease))
        self._running[job.job_id] = _Running(task, audio_s)
        task.add_done_callback(lambda _: self._note_end(job.job_id))

    def _note_end(self, job_id: str) -> None:
        del self._running[job_id]
        self.wake()

    async def _work(self, job: Job, lease: Lease) -> None:
        """Transcribe one job, and end its lease in one way or the other."""
        try:
            outcome = await self._outcome(job, lease)
            if isinstance(outcome, Deferred):
                log.warning("job %s is tried again in %.0f s: %s", job.job_id, DEFER_S, outcome.error.message)
                await _persist(lambda: self._store.defer(lease, DEFER_S))
                return
            ended = await _persist(lambda: self._store.finish(lease, outcome))
        except LeaseLost:
            log.info("job %s is no longer this worker's", job.job_id)
        except asyncio.CancelledError:
            with suppress(LeaseLost, StoreUnavailable, TimeoutError):
                await asyncio.wait_for(self._store.hand_back(lease), HAND_BACK_S)
            raise
        else:
            log.info("job %s is %s", job.job_id, ended.state)
            self._service.recorder.record(catalogue.JOBS_ENDED, 1, ended.state)
            await self._uploads.remove([job.job_id])
            self._on_end()

    async def _outcome(self, job: Job, lease: Lease) -> Outcome | Deferred:
        """Raises LeaseLost."""
        try:
            return await self._transcribe(job, JobRequest.from_json(job.request), lease)
        except SpeechError as error:
            is_temporary = error.status in (429, 503) and time.time() - job.created_at_s < GIVE_UP_S
            return Deferred(error) if is_temporary else JobError(error.code, error.message)
        except FileNotFoundError:
            return UPLOAD_LOST
        except LeaseLost:
            raise
        except Exception:
            log.exception("job %s failed", job.job_id)
            return JobError(EngineError.code, UNFORESEEN)

    async def _transcribe(self, job: Job, request: JobRequest, lease: Lease) -> Completed:
        """Raises SpeechError, LeaseLost and FileNotFoundError."""
        model = self._service.find_model(request.model)
        options = JobOptions(
            windows=_windows(request),
            keywords=request.keywords,
            language=request.language,
            entry_point="jobs",
            is_background=True,
            drops_crosstalk=request.drops_crosstalk,
        )
        windows = options.windows or self._service.settings.windows_for(model)
        provenance = Provenance(_described(model), f"{windows.window_s} s, {windows.overlap_s} s", __version__)
        checkpoint = await _persist(lambda: self._store.resume(lease, provenance))
        progress = await asyncio.to_thread(JobProgress, checkpoint, job.done_s if checkpoint.parts else 0.0)
        with self._uploads.path(job.job_id).open("rb") as file:
            recording = self._service.decoders.open(file, track=request.track, multichannel=request.multichannel)
            events = self._service.transcribe_events(recording, model, options, progress)
            working = asyncio.ensure_future(_to_the_end(events, progress))
            saving = asyncio.ensure_future(self._save(lease, progress, lambda: recording.announced_s))
            try:
                await asyncio.wait([working, saving], return_when=asyncio.FIRST_COMPLETED)
                if saving.done():
                    await saving
                done = await working
            finally:
                await stop(working, saving)
        transcript = options.transcript(done, recording.warnings, model, recording.channels)
        return Completed(await asyncio.to_thread(pack_transcript, transcript), done.duration_s)

    async def _save(self, lease: Lease, progress: JobProgress, length_s: Callable[[], float | None]) -> None:
        """Save what is new and renew the lease, until cancelled. Raises LeaseLost."""
        saved_at_s = time.monotonic()
        while True:
            await asyncio.sleep(SAVE_S)
            first, parts = progress.unsaved()
            if not parts and time.monotonic() - saved_at_s < RENEW_S:
                continue
            try:
                await self._store.save(lease, done_s=progress.done_s, audio_s=length_s(), first=first, parts=parts)
            except StoreUnavailable:
                continue
            progress.saved()
            saved_at_s = time.monotonic()


async def _to_the_end(events: AsyncGenerator[Event, None], progress: JobProgress) -> Done:
    async with aclosing(events):
        async for event in events:
            progress.take(event)
            if isinstance(event, Done):
                return event
    raise AssertionError("the pipeline ends with Done")


async def _persist(call: Callable[[], Awaitable[Result]]) -> Result:
    """The result of a call of the store, which is repeated while the store is unavailable."""
    while True:
        try:
            return await call()
        except StoreUnavailable:
            await asyncio.sleep(RETRY_S)


def _windows(request: JobRequest) -> WindowSettings | None:
    if request.window_s is None or request.overlap_s is None:
        return None
    return WindowSettings(window_s=request.window_s, overlap_s=request.overlap_s)


def _described(model: ModelSettings) -> str:
    """What of a model's settings its tokens depend on."""
    return f"{model.name}: {model.source}, {model.decoder}, {model.precision}, {model.keyword_weight:g}"
