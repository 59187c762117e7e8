"""Write SubRip and WebVTT from cues, CSV and TSV from segments."""

import csv
import html
import io
from collections.abc import Callable, Sequence

from pysubs2 import SSAEvent, SSAFile

from serve_app.output.cues import Cue
from serve_app.transcript import Transcript

BACKSLASH_PLACEHOLDER = "\0"
"""Replaces backslashes while pysubs2 writes, because pysubs2 interprets them as SubStation Alpha commands, even for SubRip."""


def to_srt(cues: Sequence[Cue]) -> str:
    """SubRip (`.srt`). The format has no escapes: the text is unchanged."""
    return _write(cues, "srt", str)


def to_vtt(cues: Sequence[Cue]) -> str:
    """WebVTT (`.vtt`). `&`, `<` and `>` are escaped."""
    return _write(cues, "vtt", lambda text: html.escape(text, quote=False))


def to_csv(transcript: Transcript) -> str:
    """CSV of the segments by RFC 4180 (lines end with CRLF), times in seconds. The columns are those of Parakeet-ASR-FastAPI."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(("Start (s)", "End (s)", "Text"))
    for start_s, end_s, text in _rows(transcript):
        writer.writerow((f"{start_s:.3f}", f"{end_s:.3f}", text))
    return table.getvalue()


def to_tsv(transcript: Transcript) -> str:
    """TSV of the segments as Whisper writes it: times in milliseconds, nothing is quoted."""
    rows = (f"{round(start_s * 1000)}\t{round(end_s * 1000)}\t{text}\n" for start_s, end_s, text in _rows(transcript))
    return "start\tend\ttext\n" + "".join(rows)


def _rows(transcript: Transcript) -> list[tuple[float, float, str]]:
    """Start and end of each segment in seconds, and its text on one line."""
    return [
        (segment.start_s, min(segment.end_s, transcript.duration_s), _one_line(segment.text)) for segment in transcript.segments
    ]


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _write(cues: Sequence[Cue], file_format: str, escape: Callable[[str], str]) -> str:
    file = SSAFile()
    for cue in cues:
        lines = (_one_line(line).replace(BACKSLASH_PLACEHOLDER, "\N{REPLACEMENT CHARACTER}") for line in cue.lines)
        text = escape("\n".join(lines)).replace("\\", BACKSLASH_PLACEHOLDER)
        file.append(SSAEvent(start=round(cue.start_s * 1000), end=round(cue.end_s * 1000), text=text))
    return file.to_string(file_format, keep_ssa_tags=True).replace(BACKSLASH_PLACEHOLDER, "\\")
