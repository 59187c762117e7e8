"""The jobs of one ingress process: what its routes need, and everything that runs beside them."""

import asyncio
import logging
from collections.abc import Awaitable, Callable
from contextlib import suppress
from functools import partial
from typing import BinaryIO, get_args

from serve_app.errors import RequestError, StoreUnavailable
from serve_app.jobs import stores
from serve_app.jobs.model import Job, JobState, NewJob, OwnerLimits
from serve_app.jobs.store import UNAVAILABLE, JobStore
from serve_app.jobs.uploads import Uploads
from serve_app.jobs.watcher import JobWatcher
from serve_app.jobs.webhook_client import WebhookClient
from serve_app.jobs.webhook_targets import WebhookTargets
from serve_app.jobs.webhooks import Deliverer, Outcome
from serve_app.jobs.worker import JobWorker
from serve_app.observe import catalogue
from serve_app.service import SpeechService
from serve_app.tasks import stop

log = logging.getLogger("ray.serve")

LEASE_S = 20.0
"""A worker that has not renewed its lease for this time has lost it, seconds."""

SWEEP_S = 5.0
"""How often leases and jobs that are over their time end, seconds."""

TIDY_EVERY = 120
"""Sweeps between two looks at the folder of uploads."""

BIND_S = 5.0
"""How long a new job waits for the folder of uploads, seconds."""

CHECK_S = 0.5
"""How often it is checked whether the server shuts down, seconds."""

RESTART_S = 5.0
"""Time until a part that failed unexpectedly is started again, seconds."""

Run = Callable[[], Awaitable[None]]
"""Something that runs until it is cancelled."""


class JobService:
    """All calls must come from one event loop."""

    def __init__(
        self, store: JobStore, uploads: Uploads, service: SpeechService, webhooks: tuple[WebhookTargets, Deliverer] | None = None
    ) -> None:
        """`webhooks`: what delivers them, and where they may go; None: no job may have one."""
        self.store = store
        self.watcher = JobWatcher(store)
        self._settings = service.settings.jobs
        self._uploads = uploads
        self._service = service
        self._worker = JobWorker(store, uploads, service, self.watcher.wake)
        self._webhooks = webhooks
        self.is_running = True
        """Leases may be held."""
        self.is_retired = False
        """Another configuration has replaced this one, and its processes do the work. Whoever sees that sets it."""
        self._bound = asyncio.Event()

    @classmethod
    def of(cls, service: SpeechService) -> "JobService":
        """As the settings say; `jobs.directory` is set. Raises OSError if it cannot be used, and ImportError."""
        settings = service.settings.jobs
        log.info("jobs are kept in %s%s", settings.directory, " and in PostgreSQL" if settings.database_url else "")
        store, webhooks = stores.store_of(settings, lease_s=LEASE_S), None
        if settings.webhook_secrets:
            targets = WebhookTargets.of(settings.webhook_hosts)
            secrets = [secret.get_secret_value() for secret in settings.webhook_secrets]
            record = partial(service.recorder.record, catalogue.WEBHOOK_TRIES, 1)
            webhooks = (targets, Deliverer(store, WebhookClient(targets), secrets, on_try=record))
        return cls(store, stores.uploads_of(settings), service, webhooks)

    async def run(self) -> None:
        """Work on jobs, except while `is_retired`, until the server shuts down or this is cancelled. All leases are handed back
        then."""
        record, admission = self._service.recorder.record, self._service.admission
        for state in (JobState.COMPLETED, JobState.FAILED):
            record(catalogue.JOBS_ENDED, 0, state)
        for outcome in get_args(Outcome):
            record(catalogue.WEBHOOK_TRIES, 0, outcome)
        working: asyncio.Task[None] | None = None
        try:
            while not admission.is_closed:
                if self.is_retired:
                    await stop(working)
                    working = None
                elif working is None:
                    working = asyncio.create_task(self._work())
                self.is_running = working is not None
                record(catalogue.JOBS_RUNNING, self._worker.running)
                await asyncio.sleep(CHECK_S)
        finally:
            try:
                await stop(working)
            finally:
                self.is_running = False

    async def _work(self) -> None:
        await self._bind()
        parts: list[Run] = [self._worker.run, self.watcher.run, self._keep_house]
        if self._webhooks is not None:
            parts.append(self._webhooks[1].run)
        async with asyncio.TaskGroup() as group:
            for part in parts:
                group.create_task(_kept_running(part))

    async def _bind(self) -> None:
        """Wait until the folder of uploads is that of the store."""
        while True:
            try:
                if await self._uploads.bind(self.store):
                    self._bound.set()
                    return
                log.error("the folder of uploads is not the one of this store: is it mounted? No jobs until it is")
            except (OSError, *UNAVAILABLE) as error:
                log.warning("the jobs have to wait: %s", error)
            await asyncio.sleep(SWEEP_S)

    def checked_webhook(self, url: str | None) -> str | None:
        """The address that gets the webhook messages of a job. Raises RequestError for one that may not."""
        if not url:
            return None
        if self._webhooks is None:
            raise RequestError("This server sends no webhooks: it has no `jobs.webhook_secrets`.", param="webhook_url")
        self._webhooks[0].target(url)
        return url

    async def create(self, new: NewJob, source: BinaryIO, speakers: bytes = b"") -> tuple[Job, bool]:
        """Keep a copy of `source`, from its first byte on, and of the known speakers, as `pack_speakers` gives them, and queue
        its job; or return the job that was made with the same idempotency key, and False. Raises StorageFull and what
        `JobStore.create` does."""
        try:
            async with asyncio.timeout(BIND_S):
                await self._bound.wait()
        except TimeoutError:
            raise StoreUnavailable from None
        limits = OwnerLimits(
            jobs=self._settings.max_jobs_per_key or None,
            upload_bytes=self._settings.max_upload_bytes_per_key or None,
            audio_s=3600 * self._settings.max_audio_hours_per_key or None,
        )
        # Before the copy, which may be large.
        if (earlier := await self.store.earlier(new, limits)) is not None:
            return earlier, False
        job, is_new = await self._uploads.create(self.store, new, source, limits, speakers=speakers)
        self._worker.wake()
        return job, is_new

    async def cancel(self, owner: str, job_id: str) -> Job:
        """End a job that has not ended. Raises what `JobStore.cancel` does."""
        job = await self.store.cancel(owner, job_id)
        self._worker.drop(job_id)
        self.watcher.wake()
        await self._uploads.remove([job_id])
        return job

    async def _keep_house(self) -> None:
        sweeps = 0
        while True:
            with suppress(*UNAVAILABLE):
                swept = await self.store.sweep()
                for job_id in swept.requeued:
                    log.info("job %s is queued again: it was deferred, or its worker was lost", job_id)
                for job in swept.failed:
                    log.error("job %s failed: it has lost its last worker", job.job_id)
                    self._service.recorder.record(catalogue.JOBS_ENDED, 1, job.state)
                await self._uploads.remove([job.job_id for job in swept.failed])
                if swept.requeued:
                    self._worker.wake()
                if sweeps % TIDY_EVERY == 0:
                    await self._uploads.tidy(self.store)
                sweeps += 1
            await asyncio.sleep(SWEEP_S)


async def _kept_running(part: Run) -> None:
    while True:
        try:
            await part()
        except Exception:
            log.exception("a part of the jobs failed; it is started again")
        await asyncio.sleep(RESTART_S)
