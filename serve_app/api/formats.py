"""A transcript as the answer to a request: every `response_format`."""

from typing import Annotated, Any, Literal

from fastapi import Form
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from serve_app import export, subtitles
from serve_app.cues import CueRules, shape
from serve_app.transcript import Transcript

ResponseFormat = Literal["json", "text", "srt", "vtt", "verbose_json", "csv", "tsv"]

MEDIA_TYPES = {"csv": "text/csv", "tsv": "text/tab-separated-values"}


def cue_rules(
    max_lines: Annotated[int | None, Form(ge=1, le=10, description="Subtitles: most lines of a cue.")] = None,
    max_line_chars: Annotated[int | None, Form(ge=8, le=500, description="Subtitles: most characters of a line.")] = None,
    max_cue_s: Annotated[float | None, Form(ge=1, le=60, description="Subtitles: longest a cue stays, seconds.")] = None,
) -> dict[str, Any]:
    """FastAPI dependency: the rules for cues that a request changes."""
    asked = {"max_lines": max_lines, "max_line_chars": max_line_chars, "max_cue_s": max_cue_s}
    return {name: value for name, value in asked.items() if value is not None}


def render(
    transcript: Transcript, response_format: ResponseFormat | None, *, with_words: bool, rules: CueRules, took_s: float
) -> Response:
    """The answer in that format; without one, a superset of what clients written for other servers expect.

    `took_s` is how long the transcription took, seconds. An hour of speech takes some tenths of a second here.
    """
    if response_format is None:
        return JSONResponse(_superset(transcript, rules, took_s))
    if response_format == "json":
        return JSONResponse(export.to_json(transcript))
    if response_format == "verbose_json":
        return JSONResponse(export.to_verbose_json(transcript, with_words=with_words))
    return PlainTextResponse(_text(transcript, response_format, rules), media_type=MEDIA_TYPES.get(response_format))


def _text(transcript: Transcript, response_format: ResponseFormat, rules: CueRules) -> str:
    match response_format:
        case "srt":
            return subtitles.to_srt(shape(transcript.segments, rules, transcript.duration_s))
        case "vtt":
            return subtitles.to_vtt(shape(transcript.segments, rules, transcript.duration_s))
        case "csv":
            return subtitles.to_csv(transcript)
        case "tsv":
            return subtitles.to_tsv(transcript)
        case _:
            return export.to_text(transcript)


def _superset(transcript: Transcript, rules: CueRules, took_s: float) -> dict[str, Any]:
    verbose = export.to_verbose_json(transcript, with_words=False)
    return export.to_json(transcript) | {
        "segments": verbose["segments"],
        "language": transcript.language,
        "duration": verbose["duration"],
        "transcription_time": round(took_s, 3),
        "csv_content": _text(transcript, "csv", rules),
        "srt_content": _text(transcript, "srt", rules),
    }
