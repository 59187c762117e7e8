"""Works on jobs: takes them from the store as there is room, transcribes them in the bulk lane, and saves how far it is.

Every ingress replica has a worker. One that dies loses nothing but the windows in flight: its leases end, and others go on from
the checkpoints.
"""

import asyncio
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass

from serve_app.errors import UNFORESEEN, EngineError, ModelNotFound, ModelUnavailable, RequestError, SpeechError
from serve_app.jobs.model import Completed, Job, JobError, Lease, LeaseLost, expected_audio_s
from serve_app.jobs.request import JobRequest
from serve_app.jobs.store import UNAVAILABLE, JobStore
from serve_app.jobs.transcription import Deferral, Transcription, persist
from serve_app.jobs.uploads import Uploads
from serve_app.observe import catalogue
from serve_app.service import SpeechService
from serve_app.tasks import stop

log = logging.getLogger("ray.serve")

MAX_RUNNING = 64
"""Maximum jobs of a worker at once. Short ones fill a batch together."""

MIN_RUNNING = 4
"""A job counts with at most this share of `jobs.max_running_audio_s`, so that so many long ones run at once."""

POLL_S = 1.0
"""How often a worker with room looks for jobs that others have made, seconds."""

DEFER_S, MAX_DEFER_S = 30.0, 600.0
"""Time until a job whose model is unavailable is tried again, seconds, at first and at most."""

RETRY_S = 5.0
"""Time until a job that failed for another reason is, seconds."""

GIVE_UP_S = 86_400.0
"""A job fails if its model has been unavailable for so long, seconds."""

HAND_BACK_S = 5.0
"""How long a worker that stops tries to give its leases back, seconds."""


@dataclass(slots=True)
class _Running:
    """Work on a job, by a lease."""

    job: Job
    task: asyncio.Task[None]
    audio_s: float
    """With which the job counts."""


class JobWorker:
    """All calls must come from one event loop."""

    def __init__(self, store: JobStore, uploads: Uploads, service: SpeechService, on_change: Callable[[], None]) -> None:
        """`on_change` is called when a job has ended, for those who wait for it."""
        self._store = store
        self._uploads = uploads
        self._service = service
        self._on_change = on_change
        self._max_audio_s = service.settings.jobs.max_running_audio_s
        self._running: dict[str, _Running] = {}
        """By the token of the lease: a job whose lease was lost may be claimed here again, before its old task has ended."""
        self._away_until_s: dict[str, float] = {}
        """Models that were unavailable, and when they are tried again, of the monotonic clock."""
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
        for running in self._running.values():
            if running.job.job_id == job_id:
                running.task.cancel()

    async def run(self) -> None:
        """Until it is cancelled; then hand back every job."""
        try:
            while True:
                self._has_news.clear()
                claimed = await self._claimed() if self._has_room else None
                if claimed is not None:
                    self._start(*claimed)
                else:
                    with suppress(TimeoutError):
                        async with asyncio.timeout(POLL_S):
                            await self._has_news.wait()
        finally:
            await stop(*(running.task for running in self._running.values()))

    @property
    def _has_room(self) -> bool:
        audio_s = sum(running.audio_s for running in self._running.values())
        return len(self._running) < MAX_RUNNING and audio_s < self._max_audio_s

    async def _claimed(self) -> tuple[Job, Lease] | None:
        claiming = asyncio.ensure_future(self._store.claim())
        try:
            return await asyncio.shield(claiming)
        except UNAVAILABLE:
            return None
        except asyncio.CancelledError:
            with suppress(*UNAVAILABLE, LeaseLost, TimeoutError):
                async with asyncio.timeout(HAND_BACK_S):
                    if (claimed := await claiming) is not None:
                        await self._store.hand_back(claimed[1])
            raise

    def _start(self, job: Job, lease: Lease) -> None:
        # Only a worker that has lost its lease can have the job, too.
        self.drop(job.job_id)
        length_s = expected_audio_s(job.audio_s, job.upload_bytes)
        audio_s = min(max(0.0, length_s - job.done_s), self._max_audio_s / MIN_RUNNING)
        task = asyncio.create_task(self._work(job, lease))
        self._running[lease.token] = _Running(job, task, audio_s)
        task.add_done_callback(lambda _: self._note_end(lease))

    def _note_end(self, lease: Lease) -> None:
        del self._running[lease.token]
        self.wake()

    async def _work(self, job: Job, lease: Lease) -> None:
        """Transcribe one job, and end its lease in one way or the other."""
        try:
            outcome = await self._outcome(job, lease)
            ending = asyncio.ensure_future(self._end(job, lease, outcome))
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                await asyncio.wait([ending], timeout=HAND_BACK_S)
                ending.cancel()
                raise
        except LeaseLost:
            log.info("job %s is no longer this worker's", job.job_id)
        except asyncio.CancelledError:
            # Where it has ended meanwhile, the lease is lost.
            with suppress(LeaseLost, TimeoutError, *UNAVAILABLE):
                async with asyncio.timeout(HAND_BACK_S):
                    await self._store.hand_back(lease)
            raise
        except Exception:
            # The lease ends by itself.
            log.exception("job %s: its end could not be recorded", job.job_id)

    async def _end(self, job: Job, lease: Lease, outcome: Completed | JobError | Deferral) -> None:
        """Raises LeaseLost."""
        if not isinstance(outcome, Deferral):
            ended: Job | None = await persist(lambda: self._store.finish(lease, outcome))
        else:
            after_s = self._defer_s(job) if outcome.waits else RETRY_S
            ended = await persist(
                lambda: self._store.defer(lease, outcome.error, after_s=after_s, give_up_s=GIVE_UP_S, is_loss=not outcome.waits)
            )
            if ended is None:
                log.warning("job %s is tried again in %.0f s: %s", job.job_id, after_s, outcome.error.message)
        if ended is not None:
            log.info("job %s is %s", job.job_id, ended.state)
            self._service.recorder.record(catalogue.JOBS_ENDED, 1, ended.state)
            await self._uploads.remove([job.job_id])
            self._on_change()

    @staticmethod
    def _defer_s(job: Job) -> float:
        """Longer from time to time, so that many jobs of a model that stays away do not keep the store busy."""
        waited_s = 0.0 if job.deferred_since_s is None else time.time() - job.deferred_since_s
        return min(max(DEFER_S, waited_s / 4), MAX_DEFER_S)

    async def _outcome(self, job: Job, lease: Lease) -> Completed | JobError | Deferral:
        """Raises LeaseLost."""
        request = JobRequest.from_json(job.request)
        if time.monotonic() < self._away_until_s.get(request.needs, 0.0):
            return Deferral(JobError(ModelUnavailable.code, f"The {request.needs} is unavailable."), waits=True)
        if request.needs in self._away_until_s:
            # One job finds out whether it is back; meanwhile the others do not take the place of other models' jobs.
            self._away_until_s[request.needs] = time.monotonic() + self._service.settings.limits.model_wait_s
        transcription = Transcription(self._store, self._uploads, self._service, job, request, lease)
        try:
            outcome: Completed | JobError | Deferral = await transcription.run()
        except (ModelUnavailable, ModelNotFound) as error:
            # A model or diarizer that is not found here may be one of the next configuration.
            self._away_until_s[request.needs] = time.monotonic() + DEFER_S
            return Deferral(JobError(error.code, error.message), waits=True)
        except SpeechError as error:
            failure = JobError(error.code, error.message)
            if isinstance(error, RequestError):
                return failure
            # Another replica or process may do better, and a disk may have room again.
            return Deferral(failure, waits=error.status == 429 or isinstance(error, UNAVAILABLE))
        except LeaseLost:
            raise
        except Exception:
            log.exception("job %s failed", job.job_id)
            return Deferral(JobError(EngineError.code, UNFORESEEN), waits=False)
        self._away_until_s.pop(request.needs, None)
        return outcome
