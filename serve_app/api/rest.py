"""REST routes: OpenAI's transcription and model routes, and the two that tell how the server fares."""

import asyncio
import time
from dataclasses import asdict
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, File, Form, UploadFile
from fastapi.responses import Response

from serve_app.api import language, streaming
from serve_app.api.errors import ERROR_RESPONSES
from serve_app.api.formats import ResponseFormat, cue_rules, render
from serve_app.api.schemas import (
    Health,
    Model,
    ModelList,
    ModelReadiness,
    Readiness,
    ReplicaReadiness,
    TranscriptionDefault,
    TranscriptionJson,
    TranscriptionVerboseJson,
)
from serve_app.api.windows import ChunkingStrategy, chunking_strategy
from serve_app.audio import AudioFile
from serve_app.cues import CueRules
from serve_app.errors import RequestError
from serve_app.service import ModelStatus, SpeechService
from serve_app.settings import ModelSettings

Granularity = Literal["word", "segment"]
File_ = Annotated[UploadFile, File(description="An audio or video file of any common format.")]
ModelName = Annotated[str | None, Form(description="Name of a model; none, or `whisper-1`, is the default model.")]
Format = Annotated[
    ResponseFormat | None, Form(description="Form of the answer; none is a superset of what clients of other servers expect.")
]

TRANSCRIPTION_RESPONSES = ERROR_RESPONSES | {
    200: {
        "model": TranscriptionDefault | TranscriptionJson | TranscriptionVerboseJson,
        "description": "The transcript in the format asked for.",
        "content": {
            media_type: {"schema": {"type": "string"}}
            for media_type in ("text/plain", "text/csv", "text/tab-separated-values", "text/event-stream")
        },
    }
}


def create_router(service: SpeechService) -> APIRouter:
    """The routes of one service."""
    router = APIRouter()
    started_at = int(time.time())

    upload: dict[str, Any] = {
        "responses": TRANSCRIPTION_RESPONSES,
        "response_model": None,
        "max_body_size": service.settings.limits.max_upload_bytes,
        # Fields, and files below a megabyte, are held in memory: they must be few and small.
        "form_limits": {"max_files": 1, "max_fields": 64, "max_part_size": 65_536},
        "tags": ["audio"],
    }

    @router.post("/v1/audio/transcriptions", **upload)
    async def transcribe(
        file: File_,
        model: ModelName = None,
        asked_languages: Annotated[list[str], Depends(language.languages)] = [],  # noqa: B006
        response_format: Format = None,
        timestamp_granularities: Annotated[
            list[Granularity],
            Form(alias="timestamp_granularities[]", description="With `verbose_json`: `word` adds the words and their times."),
        ] = ["segment"],  # noqa: B006
        stream: Annotated[bool, Form(description="Send the text as server-sent events while it becomes final.")] = False,
        cue_changes: Annotated[dict[str, Any], Depends(cue_rules)] = {},  # noqa: B006
        strategy: Annotated[ChunkingStrategy, Depends(chunking_strategy)] = ChunkingStrategy(),  # noqa: B008
    ) -> Response:
        """Transcribe a file."""
        found = service.find_model(model)
        spoken = language.check(asked_languages, found)
        windows = strategy.windows(service.settings.windows_for(found))
        audio = AudioFile(file.file)
        if stream:
            return await streaming.stream(service.transcribe_events(audio, found, windows))
        started_s = time.monotonic()
        transcript = await service.transcribe_file(audio, found, windows, spoken)
        return await asyncio.to_thread(
            render,
            transcript,
            response_format,
            with_words="word" in timestamp_granularities,
            rules=CueRules(**{**service.settings.subtitles.model_dump(), **cue_changes}),
            took_s=time.monotonic() - started_s,
        )

    @router.post("/v1/audio/translations", **upload)
    async def translate(
        file: File_,
        model: ModelName = None,
        response_format: Format = None,
        cue_changes: Annotated[dict[str, Any], Depends(cue_rules)] = {},  # noqa: B006
    ) -> Response:
        """Transcribe English speech into English. The models translate nothing: those that speak other languages refuse."""
        found = service.find_model(model)
        if found.languages != ("en",):
            raise RequestError(f"The model `{found.name}` transcribes, it does not translate.", param="model")
        return await transcribe(file, model, [], response_format or "json", ["segment"], False, cue_changes)

    @router.get("/v1/models", tags=["models"])
    async def list_models() -> ModelList:
        """The models that requests can name."""
        return ModelList(data=[describe(m) for m in service.settings.models])

    @router.get("/v1/models/{model}", responses={404: ERROR_RESPONSES[404]}, tags=["models"])
    async def get_model(model: str) -> Model:
        """One model."""
        return describe(service.find_model(model))

    def describe(model: ModelSettings) -> Model:
        return Model(id=model.name, created=started_at, owned_by=model.source)

    @router.get("/health", tags=["server"])
    async def health() -> Health:
        """Whether the server is alive. Says nothing of the models."""
        return Health()

    @router.get(
        "/ready", responses={503: {"model": Readiness, "description": "A model that is kept loaded is not."}}, tags=["server"]
    )
    async def ready(response: Response) -> Readiness:
        """How every model fares. Asking does not load a model."""
        statuses = await service.model_statuses()
        is_ready = all(status.is_ready for status in statuses) and not service.admission.is_closed
        response.status_code = 200 if is_ready else 503
        return Readiness(ready=is_ready, models=[_readiness(status) for status in statuses])

    return router


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
