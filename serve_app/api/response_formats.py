"""Response formats: renders a transcript in the `response_format` of a request."""

import time
from dataclasses import dataclass
from functools import partial
from typing import Annotated, Any, Literal

from fastapi import Form
from fastapi.responses import JSONResponse, PlainTextResponse, Response
from pydantic import Field

from serve_app.api.threads import Checkpoint, run_in_thread
from serve_app.output import export, subtitles
from serve_app.output.cues import CueRules
from serve_app.settings import SubtitleSettings
from serve_app.transcript import Transcript

ResponseFormat = Literal["json", "text", "srt", "vtt", "verbose_json", "csv", "tsv", "diarized_json"]
Granularity = Literal["word", "segment"]
Inclusion = Literal["logprobs", "progress"]

MaxLines = Annotated[int, Field(ge=1, le=10, description="Subtitles: maximum lines of a cue.")]
MaxLineChars = Annotated[int, Field(ge=8, le=500, description="Subtitles: maximum characters of a line.")]
MaxCueS = Annotated[float, Field(ge=1, le=60, description="Subtitles: maximum duration of a cue, seconds.")]

MEDIA_TYPES = {"csv": "text/csv", "tsv": "text/tab-separated-values"}
"""Media types by response format; the other text formats are `text/plain`."""

MAX_INLINE_S = 30.0
"""Maximum duration of a recording whose response is rendered on the event loop, seconds; it takes about a millisecond."""


@dataclass(frozen=True, slots=True)
class Timing:
    """When a request and its transcription began; seconds of the monotonic clock."""

    request_began_s: float
    transcription_began_s: float


@dataclass(frozen=True, slots=True)
class Rendering:
    """How a request wants its transcript rendered.

    Without a `response_format`, the response is `verbose_json` and the fields that clients of other servers expect.
    """

    response_format: ResponseFormat | None = None
    with_words: bool = False
    with_logprobs: bool = False
    with_progress: bool = False
    cue_changes: tuple[tuple[str, float], ...] = ()
    task: Literal["transcribe", "translate"] = "transcribe"

    async def response(self, transcript: Transcript, defaults: SubtitleSettings, timing: Timing) -> Response:
        """The response. `defaults` are the server's rules for cues."""
        if transcript.duration_s <= MAX_INLINE_S:
            return self.respond(transcript, defaults, timing)
        # In a thread: an hour of speech takes some tenths of a second, which would block the event loop.
        return await run_in_thread(partial(self.respond, transcript, defaults, timing))

    def respond(
        self, transcript: Transcript, defaults: SubtitleSettings, timing: Timing, checkpoint: Checkpoint = lambda: None
    ) -> Response:
        """The same, blocking."""
        content = self.content(transcript, defaults, timing, checkpoint)
        if isinstance(content, str):
            return PlainTextResponse(content, media_type=MEDIA_TYPES.get(self.response_format or ""))
        return JSONResponse(content)

    def content(
        self, transcript: Transcript, defaults: SubtitleSettings, timing: Timing, checkpoint: Checkpoint = lambda: None
    ) -> str | dict[str, Any]:
        """The body of the response: text, or a JSON object."""
        rules = CueRules(**(dict(defaults) | dict(self.cue_changes)))
        match self.response_format:
            case None:
                return self._superset(transcript, rules, timing, checkpoint)
            case "json":
                return export.to_json(transcript, with_logprobs=self.with_logprobs)
            case "verbose_json":
                return self._verbose(transcript)
            case "diarized_json":
                return export.to_diarized_json(transcript)
            case "srt":
                return _srt(transcript, rules, checkpoint)
            case "vtt":
                return subtitles.to_vtt(subtitles.cues_of(transcript, rules, checkpoint))
            case "csv":
                return subtitles.to_csv(transcript)
            case "tsv":
                return subtitles.to_tsv(transcript)
            case _:
                return export.to_text(transcript)

    def _verbose(self, transcript: Transcript) -> dict[str, Any]:
        return export.to_verbose_json(transcript, with_words=self.with_words, with_logprobs=self.with_logprobs, task=self.task)

    def _superset(self, transcript: Transcript, rules: CueRules, timing: Timing, checkpoint: Checkpoint) -> dict[str, Any]:
        now_s = time.monotonic()
        return self._verbose(transcript) | {
            "language": transcript.language,
            "transcription_time": round(now_s - timing.transcription_began_s, 3),
            "total_request_time_server": round(now_s - timing.request_began_s, 3),
            "csv_content": subtitles.to_csv(transcript),
            "srt_content": _srt(transcript, rules, checkpoint),
        }


async def rendering(
    response_format: Annotated[
        ResponseFormat | None,
        Form(
            description="Format of the response. If omitted: `verbose_json` and the fields that clients of other servers expect. "
            "`diarized_json` implies `diarize=true`."
        ),
    ] = None,
    timestamp_granularities: Annotated[
        list[Granularity],
        Form(
            alias="timestamp_granularities[]",
            description="With `verbose_json`: `word` adds the words and their times. Segments are always included.",
        ),
    ] = ["segment"],  # noqa: B006
    include: Annotated[
        list[Inclusion] | None,
        Form(
            alias="include[]",
            description="`logprobs` adds the model's tokens with their log probabilities, in `json`, `verbose_json` and streams; "
            "`progress` adds progress events to a stream.",
        ),
    ] = None,
    max_lines: Annotated[MaxLines | None, Form()] = None,
    max_line_chars: Annotated[MaxLineChars | None, Form()] = None,
    max_cue_s: Annotated[MaxCueS | None, Form()] = None,
) -> Rendering:
    """FastAPI dependency: the rendering that the form's fields ask for."""
    return Rendering(
        response_format,
        with_words="word" in timestamp_granularities,
        with_logprobs="logprobs" in (include or []),
        with_progress="progress" in (include or []),
        cue_changes=cue_changes(max_lines=max_lines, max_line_chars=max_line_chars, max_cue_s=max_cue_s),
    )


def cue_changes(**fields: float | None) -> tuple[tuple[str, float], ...]:
    """The server's rules for cues that a request overrides, with its values; None is no override."""
    return tuple((name, value) for name, value in fields.items() if value is not None)


def _srt(transcript: Transcript, rules: CueRules, checkpoint: Checkpoint) -> str:
    return subtitles.to_srt(subtitles.cues_of(transcript, rules, checkpoint))
