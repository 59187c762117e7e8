"""Write SubRip and WebVTT from cues, CSV and TSV from segments."""

import csv
import html
import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

from pysubs2 import SSAEvent, SSAFile

from serve_app.output.cues import Cue, CueRules, shape
from serve_app.output.export import channel_name
from serve_app.transcript import Transcript

BACKSLASH_PLACEHOLDER = "\0"
"""Replaces backslashes while pysubs2 writes, because pysubs2 interprets them as SubStation Alpha commands, even for SubRip."""


def cues_of(transcript: Transcript, rules: CueRules, checkpoint: Callable[[], None] = lambda: None) -> list[Cue]:
    """The cues of a transcript, in the order in which they start. Those of one channel do not overlap.

    `checkpoint`: see `shape`.
    """
    if not transcript.channels:
        return shape(transcript.segments, rules, transcript.duration_s, checkpoint)
    cues = [
        replace(cue, channel=channel)
        for channel in transcript.channels
        for cue in shape(transcript.of_channel(channel).segments, rules, transcript.duration_s, checkpoint)
    ]
    return sorted(cues, key=lambda cue: cue.start_s)


def to_srt(cues: Sequence[Cue]) -> str:
    """SubRip (`.srt`). The format has no escapes: the text is unchanged. A channel is named before its text."""
    return _write(cues, "srt", str, lambda name: f"{name}: ")


def to_vtt(cues: Sequence[Cue]) -> str:
    """WebVTT (`.vtt`). `&`, `<` and `>` are escaped. A channel is a voice."""
    return _write(cues, "vtt", lambda text: html.escape(text, quote=False), lambda name: f"<v {name}>")


def to_csv(transcript: Transcript) -> str:
    """CSV of the segments by RFC 4180 (lines end with CRLF), times in seconds. The columns are those of Parakeet-ASR-FastAPI; if
    there are channels, they have one more."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(("Start (s)", "End (s)", "Text", *(("Channel",) if transcript.channels else ())))
    for start_s, end_s, *rest in _rows(transcript):
        writer.writerow((f"{start_s:.3f}", f"{end_s:.3f}", *rest))
    return table.getvalue()


def to_tsv(transcript: Transcript) -> str:
    """TSV of the segments as Whisper writes it: times in milliseconds, nothing is quoted. Channels have one more column."""
    lines = ["start\tend\ttext" + "\tchannel" * bool(transcript.channels)]
    for start_s, end_s, *rest in _rows(transcript):
        lines.append("\t".join((str(round(start_s * 1000)), str(round(end_s * 1000)), *rest)))
    return "\n".join(lines) + "\n"


def _rows(transcript: Transcript) -> Iterator[tuple[float, float, *tuple[str, ...]]]:
    """Start and end of each segment in seconds, its text on one line, and its channel if there are any."""
    for segment in transcript.segments:
        channel = () if segment.channel is None else (str(segment.channel),)
        yield segment.start_s, min(segment.end_s, transcript.duration_s), _one_line(segment.text), *channel


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _write(cues: Sequence[Cue], file_format: str, escape: Callable[[str], str], label: Callable[[str], str]) -> str:
    file = SSAFile()
    for cue in cues:
        lines = (_one_line(line).replace(BACKSLASH_PLACEHOLDER, "\N{REPLACEMENT CHARACTER}") for line in cue.lines)
        text = escape("\n".join(lines)).replace("\\", BACKSLASH_PLACEHOLDER)
        if cue.channel is not None:
            text = label(channel_name(cue.channel)) + text
        file.append(SSAEvent(start=round(cue.start_s * 1000), end=round(cue.end_s * 1000), text=text))
    return file.to_string(file_format, keep_ssa_tags=True).replace(BACKSLASH_PLACEHOLDER, "\\")
