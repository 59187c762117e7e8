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
    """SubRip (`.srt`). The format has no escapes: the text is unchanged. A channel or speaker is named before the text, without
    an arrow, which could make a line of times of it."""
    return _write(cues, "srt", str, lambda name: f"{name.replace('-->', '->')}: ")


def to_vtt(cues: Sequence[Cue]) -> str:
    """WebVTT (`.vtt`). `&`, `<` and `>` are escaped. A channel or speaker is a voice."""
    return _write(cues, "vtt", lambda text: html.escape(text, quote=False), lambda name: f"<v {html.escape(name, quote=False)}>")


def to_csv(transcript: Transcript) -> str:
    """CSV of the segments by RFC 4180 (lines end with CRLF), times in seconds. The columns are those of Parakeet-ASR-FastAPI, and
    one more if there are channels or speakers."""
    table = io.StringIO(newline="")
    writer = csv.writer(table)
    writer.writerow(("Start (s)", "End (s)", "Text", *(name.capitalize() for name in _labels(transcript))))
    for start_s, end_s, *rest in _rows(transcript):
        writer.writerow((f"{start_s:.3f}", f"{end_s:.3f}", *rest))
    return table.getvalue()


def to_tsv(transcript: Transcript) -> str:
    """TSV of the segments as Whisper writes it: times in milliseconds, nothing is quoted. Channels and speakers have one more
    column."""
    lines = ["\t".join(("start", "end", "text", *_labels(transcript)))]
    for start_s, end_s, *rest in _rows(transcript):
        lines.append("\t".join((str(round(start_s * 1000)), str(round(end_s * 1000)), *rest)))
    return "\n".join(lines) + "\n"


def _labels(transcript: Transcript) -> tuple[str, ...]:
    """The columns after the text."""
    return (("channel",) if transcript.channels else ()) + (("speaker",) if transcript.speakers else ())


def _rows(transcript: Transcript) -> Iterator[tuple[float, float, *tuple[str, ...]]]:
    """Start and end of each segment in seconds, its text on one line, and its channel and speaker if there are any."""
    labels = _labels(transcript)
    for segment in transcript.segments:
        values = {"channel": str(segment.channel), "speaker": _one_line(segment.speaker or "")}
        texts = (_one_line(segment.text), *(values[label] for label in labels))
        yield segment.start_s, min(segment.end_s, transcript.duration_s), *texts


def _one_line(text: str) -> str:
    return " ".join(text.split())


def _write(cues: Sequence[Cue], file_format: str, escape: Callable[[str], str], label: Callable[[str], str]) -> str:
    file = SSAFile()
    for cue in cues:
        name = channel_name(cue.channel) if cue.channel is not None else cue.speaker
        text = ("" if name is None else label(_one_line(name))) + escape("\n".join(map(_one_line, cue.lines)))
        text = text.replace(BACKSLASH_PLACEHOLDER, "\N{REPLACEMENT CHARACTER}").replace("\\", BACKSLASH_PLACEHOLDER)
        file.append(SSAEvent(start=round(cue.start_s * 1000), end=round(cue.end_s * 1000), text=text))
    return file.to_string(file_format, keep_ssa_tags=True).replace(BACKSLASH_PLACEHOLDER, "\\")
