"""The routes of jobs: files that are transcribed without an open connection."""

import asyncio
import time
from collections.abc import AsyncGenerator
from contextlib import aclosing, nullcontext, suppress
from dataclasses import asdict, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, Form, Header, Path, Query, Request
from fastapi.responses import JSONResponse, Response

from serve_app.api import job_events, job_forms, keywords, language, response_formats
from serve_app.api.channels import ChannelChoice, channel_choice
from serve_app.api.chunking_strategy import ChunkingStrategy, chunking_strategy
from serve_app.api.client_address import client_address
from serve_app.api.errors import ERROR_RESPONSES
from serve_app.api.forms import CompleteFormRoute
from serve_app.api.job_events import Position
from serve_app.api.job_schemas import JobBody, JobList, PriorityName, State, body_alone, body_of
from serve_app.api.keywords import Phrases
from serve_app.api.response_formats import Granularity, Inclusion, Rendering, ResponseFormat, Timing
from serve_app.api.rest import FORM_LIMITS, TRANSCRIPTION_RESPONSES, File_, ModelName, Temperature, Track
from serve_app.api.speakers import SpeakerChoice, speaker_choice
from serve_app.api.streaming import event_stream
from serve_app.cluster.admission import Places
from serve_app.diarization.references import pack_speakers
from serve_app.errors import JobNotFound, JobStateConflict, RequestError, StoreUnavailable
from serve_app.jobs.model import Idempotency, Job, JobState, NewJob, Priority, new_id
from serve_app.jobs.parts import unpack_transcript
from serve_app.jobs.request import JobRequest
from serve_app.jobs.service import JobService
from serve_app.service import SpeechService

PATH = "/v1/jobs"
MAX_KEY_CHARS = 255
"""Of an `Idempotency-Key`."""

MAX_WAIT_S = 600.0
MAX_WATCHING, MAX_WATCHING_PER_ADDRESS = 2048, 256
"""Maximum requests that wait for a job or follow its events, of an ingress replica."""

MAX_RESULTS, MAX_RESULTS_PER_ADDRESS = 32, 16
"""Maximum results that are being rendered, those that wait included."""

_MAX_NUMBER = (1 << 63) - 1


async def _known_form(job_id: Annotated[str, Path(description="The `id` of a job.")]) -> str:
    """FastAPI dependency. Raises JobNotFound for what is no id, which not every database takes."""
    if not (job_id.isascii() and job_id.isprintable()):
        raise JobNotFound.by_id(repr(job_id)[1:-1])
    return job_id


JobId = Annotated[str, Depends(_known_form)]
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
RESULT_RESPONSE = dict(TRANSCRIPTION_RESPONSES[200])
RESULT_RESPONSE["content"] = {kind: each for kind, each in RESULT_RESPONSE["content"].items() if kind != "text/event-stream"}
NO_JOB: dict[int | str, dict[str, Any]] = {
    404: {**ERROR_RESPONSES[404], "description": "There is no such job, or it is another key's."}
}


def create_router(service: SpeechService, jobs: JobService) -> APIRouter:
    """The routes."""
    router = APIRouter(prefix=PATH, route_class=CompleteFormRoute, tags=["jobs"])
    limits, subtitles = service.settings.jobs, service.settings.subtitles
    # One at a time is unpacked and rendered, as with exports.
    results, one_result = Places(MAX_RESULTS, MAX_RESULTS_PER_ADDRESS, "results in progress"), asyncio.Semaphore(1)
    watching = Places(MAX_WATCHING, MAX_WATCHING_PER_ADDRESS, "requests that wait for jobs")

    @router.post(
        "",
        status_code=202,
        response_model=JobBody,
        form_limits=FORM_LIMITS,
        responses=ERROR_RESPONSES
        | {
            200: {"model": JobBody, "description": "The job has ended (`wait`), or was made before."},
            409: {**ERROR_RESPONSES[400], "description": "Another request had the same `Idempotency-Key`."},
            503: {**ERROR_RESPONSES[503], "description": "The disk is full, or the store of jobs is unavailable."},
        },
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
        speakers: Annotated[SpeakerChoice, Depends(speaker_choice)] = SpeakerChoice(),  # noqa: B008
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
        wanted = await speakers.options(service, rendering, multichannel=channels.multichannel)
        known = await asyncio.to_thread(pack_speakers, wanted.known if wanted else ())
        asked = JobRequest(
            model=chosen.name,
            window_s=None if is_default else windows.window_s,
            overlap_s=None if is_default else windows.overlap_s,
            keywords=keywords.check(phrases, chosen, are_refused=service.refuses_keywords(chosen)),
            language=language.check(asked_languages, chosen),
            track=track,
            **asdict(channels),
            **job_forms.speaker_fields(wanted),
            filename=(file.filename or "")[:1024],
            rendering=asdict(rendering),
        )
        new = NewJob(
            job_id=new_id("job"),
            owner=_owner(request),
            request=asked.to_json(),
            upload_bytes=file.size or 0,
            ttl_s=job_forms.ttl_s_of(ttl_s, limits.default_ttl_s, limits.max_ttl_s),
            audio_s=await job_forms.length_s(service.decoders.open(file.file, track=track, multichannel=channels.multichannel)),
            priority=Priority[priority.upper()],
            metadata=job_forms.metadata_of(metadata),
            webhook_url=jobs.checked_webhook(webhook_url),
        )
        if idempotency_key is not None:
            form = [(name, value) for name, value in (await request.form()).multi_items() if isinstance(value, str)]
            digest = await asyncio.to_thread(job_forms.digest_of, form, [*speakers.references, file.file])
            new = replace(new, idempotency=Idempotency(idempotency_key, digest))
        # Before the job is made: a request that is refused has made none.
        with watching.take(_address(request)) if wait else nullcontext():
            job, is_new = await jobs.create(new, file.file, known)
            if wait:
                request.state.end_work()
                job = await jobs.watcher.ended(job, wait)
        status = 202 if is_new and not job.state.is_ended else 200
        return await answer(job, status, location=f"{PATH.rpartition('/')[2]}/{job.job_id}")

    @router.get("", response_model=JobList)
    async def list_jobs(
        request: Request,
        state: Annotated[State | None, Query(description="Only those in this state.")] = None,
        limit: Annotated[int, Query(ge=1, le=100)] = 20,
        before: Annotated[int | None, Query(ge=0, le=_MAX_NUMBER, description="`next` of the page before.")] = None,
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
        with watching.take(_address(request)):
            return await answer(await jobs.watcher.ended(status.job, wait), 200)

    @router.get(
        "/{job_id}/result",
        response_model=None,
        responses={
            200: RESULT_RESPONSE,
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
        asked = JobRequest.from_json(job.request)
        rendering = Rendering(**dict(asked.rendering))
        if response_format == "diarized_json" and asked.diarizer is None:
            raise RequestError("This job was made without `diarize`: nobody knows who speaks.", param="response_format")
        if response_format is not None:
            rendering = await response_formats.rendering(response_format, granularities or ["segment"], include)
        changes = response_formats.cue_changes(max_lines=max_lines, max_line_chars=max_line_chars, max_cue_s=max_cue_s)
        # From JSON, pairs are lists.
        rendering = replace(rendering, cue_changes=(*((name, value) for name, value in rendering.cue_changes), *changes))
        with results.take(_address(request)):
            async with one_result:
                transcript = await asyncio.to_thread(unpack_transcript, data)
                return await rendering.response(transcript, subtitles, _timing(job))

    @router.get(
        "/{job_id}/events",
        response_model=None,
        responses={
            200: {"content": {"text/event-stream": {}}, "description": "The events."},
            204: {"description": "The client has everything."},
            **NO_JOB,
        },
    )
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

    @router.delete(
        "/{job_id}", response_model=None, responses={200: {"model": JobBody}, 204: {"description": "It is forgotten."}, **NO_JOB}
    )
    async def delete(request: Request, job_id: JobId) -> Response:
        """Cancel a job that has not ended (200), or forget one that has, with its result (204)."""
        owner = _owner(request)
        with suppress(JobStateConflict):
            return await answer(await jobs.cancel(owner, job_id), 200)
        await jobs.store.forget(owner, job_id)
        return Response(status_code=204)

    def _address(request: Request) -> str:
        return client_address(request.scope, service.settings.ingress.trusted_proxies)

    async def answer(job: Job, code: int, location: str | None = None) -> Response:
        headers = {} if location is None else {"Location": location}
        try:
            body = body_of(await jobs.store.status(job.owner, job.job_id))
        except (StoreUnavailable, JobNotFound):
            # What was asked for is done.
            body = body_alone(job)
        return JSONResponse(body.model_dump(), code, headers)

    return router


def _owner(request: Request) -> str:
    """The name of the request's key; empty where the server needs none."""
    return getattr(request.state, "key_name", "")


def _timing(job: Job) -> Timing:
    """As if the request had lasted until now."""
    now_s, ended_s = time.monotonic(), job.ended_at_s or 0.0
    return Timing(now_s - (ended_s - job.created_at_s), now_s - (ended_s - (job.started_at_s or ended_s)))
