"""A transcript that a client has, and may have edited, in any format: for pages and programs that offer several of one result."""

import math
from collections.abc import Iterator
from typing import Literal, Self

from fastapi import APIRouter
from fastapi.responses import JSONResponse, Response
from pydantic import BaseModel, Field, model_validator

from serve_app.api.errors import ERROR_RESPONSES
from serve_app.api.formats import Rendering, Timing
from serve_app.api.schemas import SegmentWord, TranscriptionVerboseJson, Usage, VerboseSegment, VerboseWord
from serve_app.export import LANGUAGE_NAMES
from serve_app.service import SpeechService
from serve_app.transcript import Segment, Transcript, Word

PATH = "/v1/audio/transcriptions/export"
LONGEST_S = 356_400.0
"""99 hours: subtitle files have two digits for them, and a cue may stand a little longer than what is said."""


class GivenSegment(VerboseSegment):
    """A segment as `verbose_json` and the WebSocket have it; start, end and text are enough."""

    id: int = 0
    seek: int = 0
    start: float = Field(ge=0, le=LONGEST_S, description="Seconds.")
    end: float = Field(ge=0, le=LONGEST_S, description="Seconds.")
    tokens: list[int] = Field([], description="Token ids of the model's vocabulary.")
    temperature: float = 0.0
    avg_logprob: float = 0.0
    compression_ratio: float = 1.0
    no_speech_prob: float = 0.0
    words: list[SegmentWord] = Field([], description="Where they are not those of the text, its words share the time evenly.")

    @model_validator(mode="after")
    def _times_go_on(self) -> Self:
        times = [self.start, *(time for word in self.words for time in (word.start, word.end)), self.end]
        if not all(math.isfinite(time) for time in times) or times != sorted(times):
            raise ValueError("times must not go back")
        return self

    def as_said(self) -> Self:
        """The same with words that are those of the text."""
        texts = self.text.split()
        if texts == [word.word for word in self.words]:
            return self
        if len(texts) == len(self.words):
            words = [word.model_copy(update={"word": text}) for word, text in zip(self.words, texts, strict=True)]
        else:
            words = list(self._spread(texts))
        return self.model_copy(update={"words": words})

    def _spread(self, texts: list[str]) -> Iterator[SegmentWord]:
        step = (self.end - self.start) / max(1, len(texts))
        for place, text in enumerate(texts):
            start, end = (round(self.start + step * edge, 3) for edge in (place, place + 1))
            yield SegmentWord(word=text, start=start, end=end, probability=1.0)


class Export(BaseModel):
    """The whole transcript, with fields of `verbose_json`."""

    response_format: Literal["json", "verbose_json", "text", "srt", "vtt", "csv", "tsv"]
    language: str = Field("unknown", description="A code, or an English name.")
    duration: float = Field(ge=0, le=LONGEST_S, description="Length of the audio, seconds.")
    segments: list[GivenSegment]
    warnings: list[str] | None = None
    max_lines: int | None = Field(None, ge=1, le=10, description="Subtitles: most lines of a cue.")
    max_line_chars: int | None = Field(None, ge=8, le=500, description="Subtitles: most characters of a line.")
    max_cue_s: float | None = Field(None, ge=1, le=60, description="Subtitles: longest a cue stays, seconds.")

    @property
    def cue_changes(self) -> tuple[tuple[str, float], ...]:
        """Of the server's rules for cues."""
        asked = {"max_lines": self.max_lines, "max_line_chars": self.max_line_chars, "max_cue_s": self.max_cue_s}
        return tuple((name, value) for name, value in asked.items() if value is not None)


def create_router(service: SpeechService) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.post(
        PATH,
        tags=["audio"],
        response_class=Response,
        responses={200: {"description": "As a transcription answers in that format."}, **ERROR_RESPONSES},
    )
    def export(given: Export) -> Response:
        """A transcript in another format."""
        segments = [segment.as_said() for segment in given.segments]
        transcript = Transcript(
            tuple(map(_segment, range(len(segments)), segments)), given.duration, "", given.language, tuple(given.warnings or ())
        )
        if given.response_format == "verbose_json":
            return JSONResponse(_verbose(given, segments, transcript))
        rendering = Rendering(given.response_format, cue_changes=given.cue_changes)
        return rendering.respond(transcript, service.settings.subtitles, Timing(0, 0))

    return router


def _segment(index: int, given: GivenSegment) -> Segment:
    words = tuple(Word(word.word, word.start, word.end, word.probability) for word in given.words)
    return Segment(index, given.text, given.start, given.end, words, ())


def _verbose(given: Export, segments: list[GivenSegment], transcript: Transcript) -> dict[str, object]:
    words = [
        VerboseWord(word=word.word, start=word.start, end=word.end, confidence=word.probability)
        for segment in segments
        for word in segment.words
    ]
    answer = TranscriptionVerboseJson(
        task="transcribe",
        language=LANGUAGE_NAMES.get(given.language, given.language),
        duration=given.duration,
        text=transcript.text,
        segments=list[VerboseSegment](segments),
        words=words,
        usage=Usage(seconds=math.ceil(given.duration)),
        warnings=given.warnings,
    )
    return answer.model_dump(exclude={name for name in ("logprobs", "warnings") if getattr(answer, name) is None})
