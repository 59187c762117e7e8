"""One job from its claim to its transcript: what is done is saved on the way, and the lease renewed."""

import asyncio
import time
from collections.abc import AsyncGenerator, Awaitable, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import TypeVar

from serve_app import __version__
from serve_app.decoders.recording import Recording
from serve_app.diarization.references import unpack_speakers
from serve_app.diarizing import SpeakerOptions, unknown_speakers
from serve_app.errors import ModelNotFound, ModelUnavailable, RequestError, StorageFull
from serve_app.events import Done, Event
from serve_app.jobs.model import CheckpointLost, Completed, Job, JobError, Lease, LeaseLost, Provenance
from serve_app.jobs.parts import pack_transcript
from serve_app.jobs.progress import JobProgress
from serve_app.jobs.request import JobRequest
from serve_app.jobs.store import UNAVAILABLE, JobStore
from serve_app.jobs.uploads import UPLOAD_LOST, Uploads
from serve_app.service import JobOptions, SpeechService
from serve_app.settings import DiarizerSettings, ModelSettings, WindowSettings
from serve_app.tasks import stop

SAVE_S, RENEW_S = 0.2, 5.0
"""How often new work is saved, and a lease is renewed without any, seconds."""

RETRY_S = 2.0
"""Time until a call of a store that is unavailable is repeated, seconds."""

STALL_S = 900.0
"""A job that gets neither windows nor events for so long counts as one whose model is unavailable, seconds."""

Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Deferral:
    """The job is to be tried again later."""

    error: JobError
    waits: bool
    """What it needs is unavailable; otherwise it has failed, which may happen three times in a row."""


async def persist(call: Callable[[], Awaitable[Result]]) -> Result:
    """The result of a call of the store, which is repeated while the store is unavailable."""
    while True:
        try:
            return await call()
        except UNAVAILABLE:
            await asyncio.sleep(RETRY_S)


class Transcription:
    """Transcribes a job, from its checkpoint on."""

    def __init__(
        self, store: JobStore, uploads: Uploads, service: SpeechService, job: Job, request: JobRequest, lease: Lease
    ) -> None:
        self._store = store
        self._uploads = uploads
        self._service = service
        self._job = job
        self._request = request
        self._lease = lease

    async def run(self) -> Completed | JobError:
        """Raises SpeechError and LeaseLost. If this is cancelled, everything that runs for it ends."""
        model = self._service.find_model(self._request.model)
        try:
            speakers, warnings = await self._speakers()
            file = await self._uploads.open(self._job.job_id)
        except FileNotFoundError:
            return UPLOAD_LOST
        except OSError as error:
            raise StorageFull(f"The upload cannot be read: {error.strerror}.") from error
        options = JobOptions(
            windows=self._windows(),
            keywords=self._request.keywords,
            language=self._request.language,
            entry_point="jobs",
            is_background=True,
            drops_crosstalk=self._request.drops_crosstalk,
            speakers=speakers,
        )
        with file:
            progress = await self._resume(model, options.windows or self._service.settings.windows_for(model))
            recording = self._service.decoders.open(file, track=self._request.track, multichannel=self._request.multichannel)
            done = await self._work(self._service.transcribe_events(recording, model, options, progress), progress, recording)
        transcript = options.transcript(done, (*recording.warnings, *warnings), model, recording.channels)
        return Completed(await asyncio.to_thread(pack_transcript, transcript), done.duration_s)

    async def _speakers(self) -> tuple[SpeakerOptions | None, tuple[str, ...]]:
        """What is wanted, and warnings. Raises OSError, and ModelNotFound for a diarizer that is not in the configuration any
        more."""
        request = self._request
        if request.diarizer is None:
            return None, ()
        try:
            diarizer = self._service.find_diarizer(request.diarizer)
        except RequestError as error:
            if request.diarizer_is_optional:
                return None, (unknown_speakers(error),)
            raise ModelNotFound(error.message, param=error.param) from error
        packed = await self._uploads.speakers(self._job.job_id) if request.knows_speakers else b""
        known = await asyncio.to_thread(unpack_speakers, packed)
        return SpeakerOptions(diarizer, known, is_optional=request.diarizer_is_optional), ()

    def _windows(self) -> WindowSettings | None:
        window_s, overlap_s = self._request.window_s, self._request.overlap_s
        return None if window_s is None or overlap_s is None else WindowSettings(window_s=window_s, overlap_s=overlap_s)

    async def _resume(self, model: ModelSettings, windows: WindowSettings) -> JobProgress:
        diarizers, wanted = self._service.settings.diarizers, self._request.diarizer
        described = [_described(model), *(_described_diarizer(each) for each in diarizers if each.name == wanted)]
        provenance = Provenance("; ".join(described), f"{windows.window_s} s, {windows.overlap_s} s", __version__)
        checkpoint = await persist(lambda: self._store.resume(self._lease, provenance))
        return await asyncio.to_thread(JobProgress, checkpoint, self._job.done_s if checkpoint.parts else 0.0)

    async def _work(self, events: AsyncGenerator[Event, None], progress: JobProgress, recording: Recording) -> Done:
        working = asyncio.ensure_future(_to_the_end(events, progress))
        saving = asyncio.ensure_future(self._save(progress, recording))
        try:
            await asyncio.wait([working, saving], return_when=asyncio.FIRST_COMPLETED)
            if saving.done():
                # Without an end of its own, it has failed.
                await saving
            done = await working
        finally:
            await stop(working, saving)
        if progress.is_void:
            # Readers of its events go on in the result, which begins otherwise.
            await persist(lambda: self._store.discard(self._lease))
        return done

    async def _save(self, progress: JobProgress, recording: Recording) -> None:
        """Save what is new and renew the lease, until cancelled. Raises LeaseLost, and ModelUnavailable where nothing comes."""
        saved_at_s = moved_at_s = time.monotonic()
        events = progress.events
        while True:
            await asyncio.sleep(SAVE_S)
            now_s = time.monotonic()
            first, parts = progress.unsaved()
            if parts or progress.events > events:
                # Windows that are known move, too: a diarizer has to hear the recording from its start again.
                moved_at_s, events = now_s, progress.events
            elif now_s - moved_at_s > STALL_S:
                raise ModelUnavailable(
                    f"The model `{self._request.model}` has decoded nothing for {STALL_S:.0f} s.", param="model"
                )
            if not parts and now_s - saved_at_s < RENEW_S:
                continue
            length_s = recording.expected_s
            audio_s = None if length_s is None else max(length_s, progress.done_s)
            try:
                if progress.is_void:
                    await self._store.discard(self._lease)
                    progress.discarded()
                await self._store.save(self._lease, done_s=progress.done_s, audio_s=audio_s, first=first, parts=parts)
            except UNAVAILABLE:
                continue
            except CheckpointLost as error:
                # The database has lost what it had not written yet: whoever claims the job goes on from what is there.
                await persist(lambda: self._store.hand_back(self._lease))
                raise LeaseLost(self._job.job_id) from error
            progress.saved()
            saved_at_s = time.monotonic()


async def _to_the_end(events: AsyncGenerator[Event, None], progress: JobProgress) -> Done:
    async with aclosing(events):
        async for event in events:
            progress.take(event)
            if isinstance(event, Done):
                return event
    raise AssertionError("the pipeline ends with Done")


def _described_diarizer(diarizer: DiarizerSettings) -> str:
    """What of a diarizer's settings the speakers depend on."""
    return f"{diarizer.name}: {diarizer.source}, {diarizer.precision}, {diarizer.chunk_s}"


def _described(model: ModelSettings) -> str:
    """What of a model's settings its tokens depend on."""
    return f"{model.name}: {model.source}, {model.decoder}, {model.precision}, {model.keyword_weight:g}"
