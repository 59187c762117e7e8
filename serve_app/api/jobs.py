"""The routes of jobs: files that are transcribed without an open connection."""

import asyncio
import hashlib
import json
import math
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import asdict, replace
from typing import Annotated, Any, BinaryIO

from fastapi import APIRouter, Depends, Form, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response

from serve_app.api import job_events, keywords, language, response_formats
from serve_app.api.channels import ChannelChoice, channel_choice
from serve_app.api.chunking_strategy import ChunkingStrategy, chunking_strategy
from serve_app.api.client_address import client_address
from serve_app.api.errors import ERROR_RESPONSES
from serve_app.api.forms import CompleteFormRoute
from serve_app.api.job_events import Position
from serve_app.api.job_schemas import JobBody, JobList, PriorityName, State, body_alone, body_of
from serve_app.api.keywords import Phrases
from serve_app.api.response_formats import Granularity, Inclusion, Rendering, ResponseFormat, Timing
from serve_app.api.rest import TRANSCRIPTION_RESPONSES, File_, ModelName, Temperature, Track
from serve_app.api.streaming import event_stream
from serve_app.cluster.admission import Places
from serve_app.decoders.recording import Recording
from serve_app.errors import RequestError
from serve_app.jobs.model import Idempotency, Job, JobState, NewJob, Priority, new_id
from serve_app.jobs.parts import unpack_transcript
from serve_app.jobs.request import JobRequest
from serve_app.jobs.service import JobService
from serve_app.service import SpeechService

PATH = "/v1/jobs"
MAX_METADATA_BYTES = 4096
MAX_KEY_CHARS = 255
"""Of an `Idempotency-Key`."""

MAX_WAIT_S = 600.0
PROBE_S = 10.0
"""Audio at the start of a file that is decoded before the answer, seconds."""

MAX_WATCHING, MAX_WATCHING_PER_ADDRESS = 2048, 256
"""Maximum requests that wait for a job or follow its events, of an ingress replica."""

_PIECE_BYTES = 1 << 20

JobId = Annotated[str, Path(description="The `id` of a job.")]
Wait = Annotated[
    float, Query(ge=0, le=MAX_WAIT_S, description="Wait so long for the job to end, seconds, before the answer is sent.")
]
IdempotencyKey = Annotated[
    str | None,
    Header(
        min_length=1,
        max_length=MAX_KEY_CHARS,
        description="Makes it safe to repeat this request: for a day, the same key with the same request returns the same job.",
    ),
]
NO_JOB: dict[int | str, dict[str, Any]] = {
    404: {**ERROR_RESPONSES[404], "description": "There is no such job, or it is another key's."}
}


def create_router(service: SpeechService, jobs: JobService) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix=PATH, route_class=CompleteFormRoute, tags=["jobs"])
    limits, subtitles = service.settings.jobs, service.settings.subtitles
    watching = Places(MAX_WATCHING, MAX_WATCHING_PER_ADDRESS, "requests that wait for jobs")

    @router.post(
        "",
        status_code=202,
        response_model=JobBody,
        responses=ERROR_RESPONSES | {200: {"model": JobBody, "description": "The job has ended (`wait`), or was made before."}},
    )
    async def create(
        request: Request,
        file: File_,
        model: ModelName = None,
        asked_languages: Annotated[list[str], Depends(language.languages)] = [],  # noqa: B006
        rendering: Annotated[Rendering, Depends(response_formats.rendering)] = Rendering(),  # noqa: B008
        phrases: Annotated[Phrases, Depends(keywords.from_form)] = Phrases(),  # noqa: B008
        strategy: Annotated[ChunkingStrategy, Depends(chunking_strategy)] = ChunkingStrategy(),  # noqa: B008
        track: Track = None,
        channels: Annotated[ChannelChoice, Depends(channel_choice)] = ChannelChoice(),  # noqa: B008
        temperature: Temperature = None,
        webhook_url: Annotated[str | None, Form(description="Gets a signed POST request when the job has ended.")] = None,
        metadata: Annotated[
            str | None, Form(description="A JSON object of at most 4 KB, which the job and its webhook messages have, too.")
        ] = None,
        ttl_s: Annotated[
            float | None,
            Form(gt=0, description="How long the job and its result are kept after the end, seconds; a week if omitted."),
        ] = None,
        priority: Annotated[PriorityName, Form(description="`low`: after the normal ones.")] = "normal",
        wait: Wait = 0.0,
        idempotency_key: IdempotencyKey = None,
    ) -> Response:
        """Queue a file. The answer comes at once; the transcript is fetched later."""
        chosen = service.find_model(model)
        windows = strategy.windows(service.settings.windows_for(chosen))
        is_default = strategy == ChunkingStrategy()
        asked = JobRequest(
            model=chosen.name,
            window_s=None if is_default else windows.window_s,
            overlap_s=None if is_default else windows.overlap_s,
            keywords=keywords.check(phrases, chosen, are_refused=service.refuses_keywords(chosen)),
            language=language.check(asked_languages, chosen),
            track=track,
            **asdict(channels),
            filename=(file.filename or "")[:1024],
            rendering=asdict(rendering),
        )
        new = NewJob(
            job_id=new_id("job"),
            owner=_owner(request),
            request=asked.to_json(),
            upload_bytes=file.size or 0,
            ttl_s=_checked_ttl_s(ttl_s, limits.default_ttl_s, limits.max_ttl_s),
            audio_s=await _length_s(service.decoders.open(file.file, track=track, multichannel=channels.multichannel)),
            priority=Priority[priority.upper()],
            metadata=_object(metadata),
            webhook_url=jobs.checked_webhook(webhook_url),
        )
        if idempotency_key is not None:
            new = replace(new, idempotency=Idempotency(idempotency_key, await asyncio.to_thread(_digest, new, file.file)))
        job, is_new = await jobs.create(new, file.file)
        job = await waited(request, job, wait)
        status = 202 if is_new and not job.state.is_ended else 200
        return await answer(job, status, location=f"{PATH.rpartition('/')[2]}/{job.job_id}")

    @router.get("", response_model=JobList)
    async def list_jobs(
        request: Request,
        state: Annotated[State | None, Query(description="Only those in this state.")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        before: Annotated[int | None, Query(description="`next` of the page before.")] = None,
    ) -> JobList:
        """List the jobs of this key, newest first. Their queue positions and webhook deliveries are left out."""
        found = await jobs.store.page(
            _owner(request), state=None if state is None else JobState(state), before=before, limit=limit + 1
        )
        page, has_more = found[:limit], len(found) > limit
        return JobList(data=[body_alone(job) for job in page], has_more=has_more, next=page[-1].number if has_more else None)

    @router.get("/{job_id}", response_model=JobBody, responses=NO_JOB)
    async def get(request: Request, job_id: JobId, wait: Wait = 0.0) -> Response:
        """Get one job."""
        status = await jobs.store.status(_owner(request), job_id)
        if wait == 0.0 or status.job.state.is_ended:
            return JSONResponse(body_of(status).model_dump())
        return await answer(await waited(request, status.job, wait), 200)

    @router.get(
        "/{job_id}/result",
        response_model=None,
        responses={
            200: TRANSCRIPTION_RESPONSES[200],
            **NO_JOB,
            409: {**ERROR_RESPONSES[400], "description": "The job has no result: it is not completed."},
        },
    )
    async def result(
        request: Request,
        job_id: JobId,
        response_format: Annotated[
            ResponseFormat | None, Query(description="If omitted, this and the other parameters are as the job's request says.")
        ] = None,
        granularities: Annotated[list[Granularity] | None, Query(alias="timestamp_granularities[]")] = None,
        include: Annotated[list[Inclusion] | None, Query(alias="include[]")] = None,
        max_lines: Annotated[response_formats.MaxLines | None, Query()] = None,
        max_line_chars: Annotated[response_formats.MaxLineChars | None, Query()] = None,
        max_cue_s: Annotated[response_formats.MaxCueS | None, Query()] = None,
    ) -> Response:
        """Get the transcript of a completed job, in any format and any number of times."""
        owner = _owner(request)
        data = await jobs.store.result(owner, job_id)
        job = (await jobs.store.status(owner, job_id)).job
        rendering = Rendering(**dict(JobRequest.from_json(job.request).rendering))
        if response_format is not None:
            rendering = await response_formats.rendering(response_format, granularities or ["segment"], include)
        changes = response_formats.cue_changes(max_lines=max_lines, max_line_chars=max_line_chars, max_cue_s=max_cue_s)
        # From JSON, pairs are lists.
        rendering = replace(rendering, cue_changes=(*((name, value) for name, value in rendering.cue_changes), *changes))
        transcript = await asyncio.to_thread(unpack_transcript, data)
        return await rendering.response(transcript, subtitles, _timing(job))

    @router.get("/{job_id}/events", response_model=None, responses=NO_JOB)
    async def events(
        request: Request,
        job_id: JobId,
        last_event_id: Annotated[str, Header(description="The id of the last event that the client has.")] = "",
    ) -> Response:
        """Follow a job: server-sent events `state`, `progress`, `segment` and `restart`."""
        position = Position.of(last_event_id)
        status = await jobs.store.status(_owner(request), job_id)
        if position.is_ended and status.job.state.is_ended:
            # Which tells an EventSource that it need not connect again.
            return Response(status_code=204)

        async def content() -> AsyncGenerator[bytes, None]:
            with watching.take(_address(request)):
                async with aclosing(job_events.events(jobs, status.job, position)) as sent:
                    async for event in sent:
                        yield event

        with watching.take(_address(request)):
            # Refused here, if at all: once the content is asked for, the status has been sent.
            return event_stream(content())

    @router.delete("/{job_id}", response_model=None, responses={200: {"model": JobBody}, 204: {}, **NO_JOB})
    async def delete(request: Request, job_id: JobId) -> Response:
        """Cancel a job that has not ended (200), or forget one that has, with its result (204)."""
        owner = _owner(request)
        status = await jobs.store.status(owner, job_id)
        if not status.job.state.is_ended:
            return await answer(await jobs.cancel(owner, job_id), 200)
        await jobs.store.forget(owner, job_id)
        return Response(status_code=204)

    async def waited(request: Request, job: Job, wait_s: float) -> Job:
        if wait_s == 0.0 or job.state.is_ended:
            return job
        with watching.take(_address(request)):
            return await jobs.watcher.ended(job, wait_s)

    def _address(request: Request) -> str:
        return client_address(request.scope, service.settings.ingress.trusted_proxies)

    async def answer(job: Job, code: int, location: str | None = None) -> Response:
        status = await jobs.store.status(job.owner, job.job_id)
        headers = {} if location is None else {"Location": location}
        return JSONResponse(body_of(status).model_dump(), code, headers)

    return router


def _owner(request: Request) -> str:
    """The name of the request's key; empty where the server needs none."""
    return getattr(request.state, "key_name", "")


async def _length_s(recording: Recording) -> float | None:
    """The length that a file states, seconds; None: none. Raises AudioError for a file without audio that can be decoded."""
    async with aclosing(recording.windows(PROBE_S, 0)) as windows:
        await anext(windows, None)
    return recording.expected_s


def _checked_ttl_s(asked_s: float | None, default_s: float, max_s: float) -> float:
    if asked_s is None:
        return default_s
    if not math.isfinite(asked_s) or asked_s > max_s:
        raise RequestError(f"A job may be kept for at most {max_s:.0f} s after its end.", param="ttl_s")
    return asked_s


def _object(text: str | None) -> dict[str, Any] | None:
    """The JSON object of the field `metadata`. Raises RequestError."""
    if text is None or not text.strip():
        return None
    try:
        if len(text.encode()) > MAX_METADATA_BYTES:
            raise RequestError(f"`metadata` may have at most {MAX_METADATA_BYTES} bytes.", param="metadata")
        value = json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise RequestError("`metadata` must be a JSON object.", param="metadata")
    return value


def _refuse_constant(name: str) -> None:
    raise ValueError(name)


def _digest(new: NewJob, file: BinaryIO) -> str:
    """Of everything that a request asks for."""
    hashed = hashlib.sha256()
    file.seek(0)
    while piece := file.read(_PIECE_BYTES):
        hashed.update(piece)
    asked = [new.request, new.ttl_s, int(new.priority), new.metadata, new.webhook_url]
    hashed.update(json.dumps(asked, sort_keys=True).encode())
    return hashed.hexdigest()


def _timing(job: Job) -> Timing:
    """As if the request had lasted until now."""
    now_s, ended_s = time.monotonic(), job.ended_at_s or 0.0
    return Timing(now_s - (ended_s - job.created_at_s), now_s - (ended_s - (job.started_at_s or ended_s)))
