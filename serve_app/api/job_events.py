"""The progress of a job as server-sent events, which a client that was disconnected goes on with.

The id of an event is `GENERATION.SEGMENTS`: how often the work had begun anew, and how many segments had been sent. With it, as
`Last-Event-ID`, nothing is sent twice. `GENERATION.end` is the id of the last event.
"""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from fastapi.sse import format_sse_event
from pydantic import BaseModel

from serve_app.api.job_schemas import JobRestart, JobSegment, body_alone
from serve_app.api.streaming import PING, with_pings
from serve_app.errors import JobNotFound, JobStateConflict, StoreUnavailable
from serve_app.jobs.model import Job, JobState
from serve_app.jobs.parts import FinalSegment, unpack_segments
from serve_app.jobs.service import JobService

END = "end"
PROGRESS_S = 1.0
"""Minimum time between two events of progress, seconds."""


@dataclass(frozen=True, slots=True)
class Position:
    """How far a client is."""

    generation: int = 0
    segments: int = 0
    is_ended: bool = False

    @classmethod
    def of(cls, last_event_id: str) -> "Position":
        """From a `Last-Event-ID`; the start for one that is not ours."""
        generation, _, rest = last_event_id.partition(".")
        if generation.isdecimal() and len(generation) < 10 and (rest == END or (rest.isdecimal() and len(rest) < 10)):
            return cls(int(generation), 0 if rest == END else int(rest), rest == END)
        return cls()


class _Reader:
    """Sends what is new of one job to one client."""

    def __init__(self, jobs: JobService, position: Position) -> None:
        self._jobs = jobs
        self._generation = position.generation
        self._sent = position.segments
        self._parts = 0
        """Parts of the checkpoint that were read, and the segments in them."""
        self._read = 0
        self._next_progress_s = 0.0

    async def news(self, job: Job, previous: Job | None) -> AsyncGenerator[bytes, None]:
        """The events of a change, from `previous` on."""
        if job.generation != self._generation:
            if self._sent:
                yield self._event("restart", JobRestart(), job)
            self._generation, self._sent, self._parts, self._read = job.generation, 0, 0, 0
        for segment in await self._new_segments(job):
            body = JobSegment(
                id=self._sent,
                start=segment.start_s,
                end=segment.end_s,
                text=segment.text,
                channel=segment.channel,
                speaker=segment.speaker,
            )
            self._sent += 1
            yield self._event("segment", body, job)
        if job.state.is_ended or previous is None or job.state != previous.state:
            yield self._event("state", body_alone(job), job)
        elif (job.done_s, job.audio_s) != (previous.done_s, previous.audio_s) and time.monotonic() >= self._next_progress_s:
            self._next_progress_s = time.monotonic() + PROGRESS_S
            yield self._event("progress", body_alone(job), job)

    async def _new_segments(self, job: Job) -> list[FinalSegment]:
        if job.state == JobState.COMPLETED:
            data = await self._jobs.store.result(job.owner, job.job_id)
            return (await asyncio.to_thread(unpack_segments, data))[self._sent :]
        if job.state.is_ended or job.part_count <= self._parts:
            return []
        checkpoint = await self._jobs.store.checkpoint(job.job_id, self._parts)
        if checkpoint.generation != self._generation:
            return []
        segments = await asyncio.to_thread(lambda: [each for part in checkpoint.parts for each in unpack_segments(part)])
        known, self._read = self._read, self._read + len(segments)
        self._parts += len(checkpoint.parts)
        return segments[max(0, self._sent - known) :]

    def _event(self, name: str, body: BaseModel, job: Job) -> bytes:
        where = END if name == "state" and job.state.is_ended else str(self._sent)
        return format_sse_event(event=name, data_str=body.model_dump_json(), id=f"{self._generation}.{where}")


async def events(jobs: JobService, job: Job, position: Position) -> AsyncGenerator[bytes, None]:
    """The events of a job from `position` on, until it has ended or is deleted, or the server stops. Comments keep the connection
    open."""
    reader, previous = _Reader(jobs, position), None
    async with aclosing(with_pings(jobs.watcher.changes(job))) as changes:
        async for changed in changes:
            if changed is None:
                yield PING
                continue
            try:
                async for event in reader.news(changed, previous):
                    yield event
            except (StoreUnavailable, JobNotFound, JobStateConflict):
                # The client goes on with its last id, or finds out that there is no such job.
                return
            previous = changed
