"""REST routes: OpenAI's transcription, translation and model routes, and the state of the server."""

import time
from dataclasses import asdict, replace
from typing import Annotated, Any

from fastapi import APIRouter, Depends, File, Form, Request, UploadFile
from fastapi.responses import Response
from pydantic import BeforeValidator

from serve_app.api import keywords, language, response_formats, streaming
from serve_app.api.auth import Keys
from serve_app.api.channels import ChannelChoice, channel_choice
from serve_app.api.chunking_strategy import ChunkingStrategy, chunking_strategy
from serve_app.api.errors import ERROR_RESPONSES
from serve_app.api.forms import FormRequest, FormRoute
from serve_app.api.keywords import Phrases
from serve_app.api.openapi import STREAM_ITEM
from serve_app.api.response_formats import Rendering, Timing
from serve_app.api.schemas import (
    DiarizerReadiness,
    Health,
    Model,
    ModelList,
    ModelReadiness,
    Readiness,
    ReplicaReadiness,
    TranscriptionDefault,
    TranscriptionDiarizedJson,
    TranscriptionJson,
    TranscriptionVerboseJson,
)
from serve_app.api.speakers import MAX_KNOWN, SpeakerChoice, speaker_choice
from serve_app.api.streaming import Extras
from serve_app.audio.growing_file import GrowingFile
from serve_app.cluster.status import ModelStatus
from serve_app.errors import RequestError
from serve_app.events import Done
from serve_app.observe import tracing
from serve_app.service import JobOptions, SpeechService
from serve_app.settings import ModelSettings


def _refuse_text(file: Any) -> Any:
    if isinstance(file, str):
        raise ValueError("it must be a part of a multipart form")
    return file


File_ = Annotated[UploadFile, File(description="An audio or video file of any common format."), BeforeValidator(_refuse_text)]
ModelName = Annotated[
    str | None, Form(description="Name or alias of a model, such as `whisper-1`. If omitted: the default model.")
]
Track = Annotated[int | None, Form(description="Number of the audio track, from 0. If omitted: the default track.")]
Temperature = Annotated[float | None, Form(description="Ignored: decoding is greedy.")]

BUNDLED_DESCRIPTION = "spoken English digits only, to try the server"
"""What the bundled model can do, where the settings do not describe it."""

TRANSCRIPTION_RESPONSES = ERROR_RESPONSES | {
    200: {
        "model": TranscriptionDefault | TranscriptionJson | TranscriptionVerboseJson | TranscriptionDiarizedJson,
        "description": "The transcript in the requested format.",
        "content": {
            media_type: {"schema": {"type": "string"}} for media_type in ("text/plain", "text/csv", "text/tab-separated-values")
        }
        | {"text/event-stream": {"itemSchema": STREAM_ITEM}},
    }
}


FORM_LIMITS: Any = {"max_files": 1 + 2 * MAX_KNOWN, "max_fields": 256, "max_part_size": 65_536}
"""Fields, and a file below 1 MB, are held in memory: their number and size are limited. References of known speakers are files;
a few too many of them get an error of their own."""


def create_router(service: SpeechService, keys: Keys) -> APIRouter:
    """The routes of one service.

    The dependencies are coroutines, because FastAPI runs plain functions in threads.
    """
    router = APIRouter(route_class=FormRoute)
    started_at = int(time.time())

    upload: dict[str, Any] = {
        "responses": TRANSCRIPTION_RESPONSES,
        "response_model": None,
        "form_limits": FORM_LIMITS,
        "tags": ["audio"],
    }

    @router.post("/v1/audio/transcriptions", **upload)
    async def transcribe(
        request: Request,
        file: File_,
        model: ModelName = None,
        asked_languages: Annotated[list[str], Depends(language.languages)] = [],  # noqa: B006
        rendering: Annotated[Rendering, Depends(response_formats.rendering)] = Rendering(),  # noqa: B008
        stream: Annotated[bool, Form(description="Send each part of the text as a server-sent event once it is final.")] = False,
        phrases: Annotated[Phrases, Depends(keywords.from_form)] = Phrases(),  # noqa: B008
        strategy: Annotated[ChunkingStrategy, Depends(chunking_strategy)] = ChunkingStrategy(),  # noqa: B008
        track: Track = None,
        channels: Annotated[ChannelChoice, Depends(channel_choice)] = ChannelChoice(),  # noqa: B008
        speakers: Annotated[SpeakerChoice, Depends(speaker_choice)] = SpeakerChoice(),  # noqa: B008
        temperature: Temperature = None,
    ) -> Response:
        """Transcribe a file."""
        if isinstance(request, FormRequest) and request.early_response is not None:
            return await request.early_response
        timing = Timing(request.state.began_s, time.monotonic())
        chosen = service.find_model(model)
        options = JobOptions(
            windows=strategy.windows(service.settings.windows_for(chosen)),
            keywords=keywords.check(phrases, chosen, are_refused=service.refuses_keywords(chosen)),
            language=language.check(asked_languages, chosen),
            drops_crosstalk=channels.drops_crosstalk,
            speakers=await speakers.options(service, rendering, multichannel=channels.multichannel),
        )
        recording = service.decoders.open(file.file, track=track, multichannel=channels.multichannel)

        def content(done: Done) -> str | dict[str, Any]:
            transcript = options.transcript(done, recording.warnings, chosen, recording.channels)
            return rendering.content(transcript, service.settings.subtitles, timing)

        if stream:
            extras = Extras(
                rendering.with_logprobs,
                (lambda: recording.announced_s) if rendering.with_progress else None,
                content if rendering.response_format else None,
                segments=rendering.response_format == "diarized_json",
            )
            events = service.transcribe_events(recording, chosen, options)
            if isinstance(file.file, GrowingFile):
                # A client reads no answer before it has sent everything, and what follows the file may change the request.
                events = streaming.held(events, file.file.completed)
            return await streaming.stream(events, extras)
        transcript = await service.transcribe_file(recording, chosen, options)
        with tracing.span("render"):
            return await rendering.response(transcript, service.settings.subtitles, timing)

    @router.post("/v1/audio/translations", **upload)
    async def translate(
        request: Request,
        file: File_,
        model: ModelName = None,
        rendering: Annotated[Rendering, Depends(response_formats.rendering)] = Rendering(),  # noqa: B008
        phrases: Annotated[Phrases, Depends(keywords.from_form)] = Phrases(),  # noqa: B008
        track: Track = None,
        temperature: Temperature = None,
    ) -> Response:
        """Transcribe English speech to English text. No model translates: one that supports other languages answers 400."""
        chosen = service.find_model(model)
        if chosen.languages != ("en",):
            raise RequestError(f"The model `{chosen.name}` does not translate; use /v1/audio/transcriptions.", param="model")
        if rendering.response_format == "diarized_json":
            raise RequestError("`diarized_json` is a format of transcriptions only.", param="response_format")
        as_json = replace(rendering, response_format=rendering.response_format or "json", task="translate")
        return await transcribe(request, file, model, ["en"], as_json, phrases=phrases, track=track)

    @router.get("/v1/models", tags=["models"])
    async def list_models() -> ModelList:
        """List the models that requests can name."""
        return ModelList(data=[describe(m) for m in service.settings.models])

    @router.get("/v1/models/{model}", responses={404: ERROR_RESPONSES[404]}, tags=["models"])
    async def get_model(model: str) -> Model:
        """Describe one model, by its name or an alias."""
        return describe(service.find_model(model))

    def describe(model: ModelSettings) -> Model:
        description = model.description or (BUNDLED_DESCRIPTION if model.source == "bundled" else "")
        return Model(
            id=model.name,
            created=started_at,
            owned_by=model.source,
            languages=list(model.languages),
            description=description,
            diarizers=[diarizer.name for diarizer in service.settings.diarizers],
        )

    @router.get("/health", tags=["server"])
    async def health() -> Health:
        """Whether the server is alive; 200 whatever the state of the models."""
        return Health()

    reason = "A model or diarizer with `min_replicas` of at least 1 is not loaded, or the server is shutting down."

    @router.get(
        "/ready",
        response_model_exclude_none=True,
        responses={503: {"model": Readiness, "description": reason}},
        tags=["server"],
    )
    async def ready(request: Request, response: Response) -> Readiness:
        """Whether the server is ready, and the state of every model. This request does not load any."""
        models, diarizers = await service.statuses()
        is_ready = all(status.is_ready for status in models + diarizers) and not service.admission.is_closed
        response.status_code = 200 if is_ready else 503
        if not keys.accept(request.headers.get("authorization")):
            return Readiness(ready=is_ready)
        return Readiness(
            ready=is_ready, models=list(map(_readiness, models)), diarizers=list(map(_diarizer_readiness, diarizers)) or None
        )

    return router


def _diarizer_readiness(status: ModelStatus) -> DiarizerReadiness:
    loaded = next((replica for replica in status.replicas if replica.state == "ready"), None)
    return DiarizerReadiness(
        id=status.model.name,
        state=status.state,
        detail=status.detail,
        device=loaded.device if loaded else "",
        precision=loaded.precision if loaded else "",
        replicas=len(status.replicas),
        steps=sum(replica.batches for replica in status.replicas),
    )


def _readiness(status: ModelStatus) -> ModelReadiness:
    loaded = next((replica for replica in status.replicas if replica.state == "ready"), None)
    replicas = [{k: v for k, v in asdict(replica).items() if k != "replica_id"} for replica in status.replicas]
    return ModelReadiness(
        id=status.model.name,
        state=status.state,
        detail=status.detail,
        device=loaded.device if loaded else "",
        precision=loaded.precision if loaded else "",
        replicas=[ReplicaReadiness(**replica) for replica in replicas],
    )
