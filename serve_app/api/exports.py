"""The export route: renders a transcript that the client sends, possibly edited, in another format. Nothing is transcribed."""

import asyncio
import math
from collections.abc import Iterator
from functools import partial
from typing import Annotated, Any, Literal, Self

from fastapi import APIRouter, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, FailFast, Field, ValidationError, field_validator, model_validator

from serve_app.api.client_address import client_address
from serve_app.api.errors import ERROR_RESPONSES
from serve_app.api.limits import MAX_BODY_BYTES
from serve_app.api.response_formats import MaxCueS, MaxLineChars, MaxLines, Rendering, Timing, cue_changes
from serve_app.api.schemas import SegmentWord, SpeakerName, VerboseSegment
from serve_app.api.speakers import MAX_NAME_CHARS
from serve_app.api.threads import Checkpoint, run_in_thread
from serve_app.cluster.admission import Places
from serve_app.errors import UploadTooLarge, UploadTooSlow
from serve_app.output.export import to_verbose_json
from serve_app.output.scripts import SPACELESS
from serve_app.service import SpeechService
from serve_app.settings import SubtitleSettings
from serve_app.transcript import Segment, Transcript, Word

PATH = "/v1/audio/transcriptions/export"
MAX_S = 356_400.0
"""Latest time of a segment, seconds: 99 hours. Subtitle files have two digits for the hours, and a cue may outlast its speech."""

MAX_WORDS = 100_000
"""Maximum words of a transcript, about eleven hours of speech. In a script without spaces, a character counts as a word."""

MAX_SEGMENTS = 20_000
"""Maximum segments of a transcript."""

MAX_SEGMENT_WORDS = 10_000
"""Maximum words with times of a segment. They are validated in one step, during which no other thread runs."""

MAX_EXPORTS = 32
"""Maximum exports in progress, those that wait included. One at a time is rendered, since Python runs one thread at a time."""

MAX_EXPORTS_PER_ADDRESS = 16
"""Of these, for one client address."""

MAX_UPLOAD_S = 60.0
"""Maximum time for the body to arrive, seconds. It is held in memory."""


class GivenSegment(VerboseSegment):
    """A segment as `verbose_json` and the WebSocket send it; only start, end and text are required."""

    id: int = 0
    seek: int = 0
    start: float = Field(ge=0, le=MAX_S, description="Seconds.")
    end: float = Field(ge=0, le=MAX_S, description="Seconds.")
    tokens: list[int] = Field([], description="Token ids of the model's vocabulary.")
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 1.0
    no_speech_prob: float = 0.0
    speaker: SpeakerName = Field(None, min_length=1, max_length=MAX_NAME_CHARS)
    words: list[SegmentWord] = Field(
        [],
        max_length=MAX_SEGMENT_WORDS,
        description="Times of the words. As many words in an edited `text` keep these times; more or fewer share the time of the "
        "segment evenly.",
    )

    @field_validator("speaker")
    @classmethod
    def _speaker_is_printable(cls, speaker: str | None) -> str | None:
        if speaker is not None and not speaker.isprintable():
            raise ValueError("a name has printable characters only")
        return speaker

    @model_validator(mode="after")
    def _times_ascend(self) -> Self:
        times = [self.start, *(time for word in self.words for time in (word.start, word.end)), self.end]
        if not all(math.isfinite(time) for time in times) or times != sorted(times):
            raise ValueError("times must be finite and must not decrease")
        return self

    def with_words_of_text(self) -> Self:
        """The segment with `words` made equal to the words of `text`."""
        texts = self.text.split()
        if texts == [word.word for word in self.words]:
            return self
        if len(texts) == len(self.words):
            words = [word.model_copy(update={"word": text}) for word, text in zip(self.words, texts, strict=True)]
        else:
            words = list(self._evenly_timed(texts))
        return self.model_copy(update={"words": words})

    def clipped(self, duration_s: float) -> Self:
        """The segment with its ends limited to the end of the audio, which is unknown when the WebSocket sends a segment."""
        words = [word.model_copy(update={"end": min(word.end, duration_s)}) for word in self.words]
        return self.model_copy(update={"end": min(self.end, duration_s), "words": words})

    def _evenly_timed(self, texts: list[str]) -> Iterator[SegmentWord]:
        word_s = (self.end - self.start) / max(1, len(texts))
        for index, text in enumerate(texts):
            start, end = (round(self.start + word_s * edge, 3) for edge in (index, index + 1))
            yield SegmentWord(word=text, start=start, end=end, probability=1.0)


class Export(BaseModel):
    """The whole transcript, in the fields of `verbose_json`, and the format to render it in."""

    response_format: Literal["json", "verbose_json", "text", "srt", "vtt", "csv", "tsv", "diarized_json"]
    language: str = Field("unknown", description="A code or an English name.")
    duration: float = Field(ge=0, le=MAX_S, description="Length of the audio, seconds.")
    segments: Annotated[list[GivenSegment], FailFast()] = Field(max_length=MAX_SEGMENTS)
    warnings: list[str] | None = None
    max_lines: MaxLines | None = None
    max_line_chars: MaxLineChars | None = None
    max_cue_s: MaxCueS | None = None

    @field_validator("segments")
    @classmethod
    def _segments_are_valid(cls, segments: list[GivenSegment]) -> list[GivenSegment]:
        if sum(max(len(segment.words), _count_words(segment.text)) for segment in segments) > MAX_WORDS:
            raise ValueError(f"a transcript may have at most {MAX_WORDS:,} words")
        if len({segment.channel is None for segment in segments}) > 1:
            raise ValueError("either all segments have a `channel`, or none has")
        return segments


BODY: dict[str, Any] = {
    "requestBody": {
        "required": True,
        "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{Export.__name__}"}}},
    }
}
"""The body in the OpenAPI document. FastAPI does not know it, as it would parse the body on the event loop."""


def create_router(service: SpeechService) -> APIRouter:
    """The route."""
    router = APIRouter()
    places, rendering = Places(MAX_EXPORTS, MAX_EXPORTS_PER_ADDRESS, "exports"), asyncio.Semaphore(1)
    trusted_proxies = service.settings.ingress.trusted_proxies

    @router.post(
        PATH,
        tags=["audio"],
        response_class=Response,
        responses={200: {"description": "The same body that a transcription has in that format."}, **ERROR_RESPONSES},
        openapi_extra=BODY,
    )
    async def export(request: Request) -> Response:
        """Render a transcript in another format. Nothing is transcribed."""
        with places.take(client_address(request.scope, trusted_proxies)):
            body = await _body(request)
            async with rendering:
                return await run_in_thread(partial(_rendered, body, service.settings.subtitles))

    return router


async def _body(request: Request) -> bytes:
    """The body, counted here because a body that claims to be a form may be far larger."""
    body = bytearray()
    try:
        async with asyncio.timeout(MAX_UPLOAD_S):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY_BYTES:
                    raise UploadTooLarge(f"A transcript may have at most {MAX_BODY_BYTES >> 20} MB.")
            return bytes(body)
    except TimeoutError:
        raise UploadTooSlow(f"The body did not arrive within {MAX_UPLOAD_S:.0f} s.") from None


def _rendered(body: bytes, subtitles: SubtitleSettings, checkpoint: Checkpoint) -> Response:
    """The response to a request body, blocking: a body of 8 MB takes seconds."""
    given = _parsed(body)
    segments = []
    for segment in given.segments:
        checkpoint()
        segments.append(segment.with_words_of_text().clipped(given.duration))
    channels = sorted({segment.channel for segment in segments if segment.channel is not None})
    transcript = Transcript(
        tuple(map(_segment, range(len(segments)), segments)),
        given.duration,
        "",
        given.language,
        tuple(given.warnings or ()),
        tuple(channels),
    )
    if given.response_format == "verbose_json":
        # A `Segment` made here has no tokens: return the token ids, avg_logprob, ... as they were given.
        verbose = to_verbose_json(transcript, with_words=True)
        dumped = [segment.model_dump() for segment in segments]
        for channel in verbose.get("channels", ()):
            channel["segments"] = [segment for segment in dumped if segment["channel"] == channel["channel"]]
        return JSONResponse(verbose | {"segments": dumped})
    changes = cue_changes(max_lines=given.max_lines, max_line_chars=given.max_line_chars, max_cue_s=given.max_cue_s)
    return Rendering(given.response_format, cue_changes=changes).respond(transcript, subtitles, Timing(0, 0), checkpoint)


def _parsed(body: bytes) -> Export:
    """Raises RequestValidationError with the first error."""
    # Counted before they are made: while Pydantic makes them, no other thread runs.
    if body.count(b"{") > 1 + MAX_SEGMENTS + MAX_WORDS:
        raise _invalid(("segments",), f"there may be at most {MAX_SEGMENTS:,} segments and {MAX_WORDS:,} words")
    try:
        return Export.model_validate_json(body)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False, include_input=False)[0]
        raise _invalid(first["loc"], first["msg"], first["type"]) from None


def _invalid(location: tuple[str | int, ...], message: str, kind: str = "value_error") -> RequestValidationError:
    """The error for a wrong value at a location in the body. `kind` is Pydantic's type of error."""
    return RequestValidationError([{"type": kind, "loc": ("body", *location), "msg": message}])


def _count_words(text: str) -> int:
    return len(text.split()) + len(SPACELESS.findall(text))


def _segment(index: int, given: GivenSegment) -> Segment:
    words = tuple(Word(word.word, word.start, word.end, word.probability) for word in given.words)
    return Segment(index, given.text, given.start, given.end, words, (), given.channel, given.speaker)
