"""A transcript as text, and as the JSON objects of OpenAI's transcription API."""

import math
import zlib
from collections.abc import Sequence
from itertools import groupby
from typing import Any

from serve_app.output.segments import WORD_MARK
from serve_app.transcript import Segment, Token, Transcript, Word

LANGUAGE_NAMES = {
    "bg": "bulgarian", "cs": "czech", "da": "danish", "de": "german", "el": "greek", "en": "english", "es": "spanish", "et":
    "estonian", "fi": "finnish", "fr": "french", "hr": "croatian", "hu": "hungarian", "it": "italian", "ja": "japanese", "lt":
    "lithuanian", "lv": "latvian", "mt": "maltese", "nl": "dutch", "pl": "polish", "pt": "portuguese", "ro": "romanian", "ru":
    "russian", "sk": "slovak", "sl": "slovenian", "sv": "swedish", "uk": "ukrainian",
}  # fmt: skip
"""English names by ISO 639-1 code: `language` of OpenAI's `verbose_json` is the name."""

UNKNOWN_SPEAKER = "unknown"
"""In `diarized_json`, which has to name somebody."""


def channel_name(channel: int) -> str:
    """As people read it."""
    return f"Channel {channel}"


def to_text(transcript: Transcript) -> str:
    """OpenAI's `text`: the transcript on one line, with a line end; with channels one line for each turn."""
    if not transcript.channels:
        return transcript.text + "\n"
    turns = groupby(transcript.segments, key=lambda segment: segment.channel)
    return "".join(
        f"{channel_name(channel or 0)}: {' '.join(segment.text for segment in segments)}\n" for channel, segments in turns
    )


def to_json(transcript: Transcript, *, with_logprobs: bool = False) -> dict[str, Any]:
    """OpenAI's `json`: the text, `usage` and optionally `logprobs`. An addition: `channels`, if there are any."""
    logprobs = {"logprobs": to_logprobs(transcript.tokens)} if with_logprobs else {}
    return {"text": transcript.text, **channel_texts(transcript), **logprobs, "usage": _usage(transcript)}


def channel_texts(transcript: Transcript) -> dict[str, Any]:
    """The text of each channel as `channels`; nothing if there are none."""
    texts = [{"channel": channel, "text": transcript.of_channel(channel).text} for channel in transcript.channels]
    return {"channels": texts} if texts else {}


def to_logprobs(tokens: Sequence[Token]) -> list[dict[str, Any]]:
    """OpenAI's `logprobs`: text, UTF-8 bytes and natural logarithm of the probability of each token."""
    texts = [token.piece.replace(WORD_MARK, " ") for token in tokens]
    return [
        {"token": text, "bytes": list(text.encode()), "logprob": round(token.log_probability, 4)}
        for text, token in zip(texts, tokens, strict=True)
    ]


def to_verbose_json(
    transcript: Transcript, *, with_words: bool, with_logprobs: bool = False, task: str = "transcribe"
) -> dict[str, Any]:
    """OpenAI's `verbose_json`, with five additions.

    Words have a `confidence`. Segments have `words`, as in Whisper's own JSON. `warnings` is present if there are any. If there
    are channels, segments and words have a `channel`, and `channels` has each by itself. Segments and words have a `speaker` if
    that is known.
    """
    verbose: dict[str, Any] = {
        "task": task,
        "language": LANGUAGE_NAMES.get(transcript.language, transcript.language),
        "duration": _seconds(transcript.duration_s),
        "text": transcript.text,
        "segments": [to_segment(segment, transcript.duration_s) for segment in transcript.segments],
    }
    if with_words:
        verbose["words"] = _words(transcript)
    if transcript.channels:
        verbose["channels"] = [_channel(transcript, channel, with_words=with_words) for channel in transcript.channels]
    if with_logprobs:
        verbose["logprobs"] = to_logprobs(transcript.tokens)
    verbose["usage"] = _usage(transcript)
    if transcript.warnings:
        verbose["warnings"] = list(transcript.warnings)
    return verbose


def to_diarized_json(transcript: Transcript) -> dict[str, Any]:
    """OpenAI's `diarized_json`. An addition: `warnings`, if there are any."""
    return {
        "task": "transcribe",
        "duration": _seconds(transcript.duration_s),
        "text": transcript.text,
        "segments": [to_diarized_segment(segment, transcript.duration_s) for segment in transcript.segments],
        "usage": _usage(transcript),
        **({"warnings": list(transcript.warnings)} if transcript.warnings else {}),
    }


def to_diarized_segment(segment: Segment, duration_s: float = math.inf) -> dict[str, Any]:
    """A segment of `diarized_json`, or of its stream. Its ends are limited to `duration_s`, the length of the audio."""
    return {
        "type": "transcript.text.segment",
        "id": segment_id(segment),
        "start": _seconds(segment.start_s),
        "end": _seconds(min(segment.end_s, duration_s)),
        "text": segment.text,
        "speaker": segment.speaker or UNKNOWN_SPEAKER,
    }


def segment_id(segment: Segment) -> str:
    """As `diarized_json` has it."""
    return f"seg_{segment.index}"


def to_segment(segment: Segment, duration_s: float = math.inf) -> dict[str, Any]:
    """A segment of `verbose_json`. Its ends are limited to `duration_s`, the length of the audio."""
    text = segment.text.encode()
    return {
        "id": segment.index,
        "seek": round(segment.start_s * 100),
        "start": _seconds(segment.start_s),
        "end": _seconds(min(segment.end_s, duration_s)),
        "text": segment.text,
        "tokens": [token.token_id for token in segment.tokens],
        "temperature": 0.0,
        "avg_logprob": round(segment.mean_log_probability, 4),
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 4),
        "no_speech_prob": 0.0,
        "words": [{**_word(word, duration_s), "probability": round(word.confidence, 4)} for word in segment.words],
        **_labels_of(segment),
    }


def to_word(word: Word, duration_s: float = math.inf) -> dict[str, Any]:
    """A word of `verbose_json`. Its end is limited to `duration_s`, the length of the audio."""
    return {**_word(word, duration_s), "confidence": round(word.confidence, 4)}


def _words(transcript: Transcript) -> list[dict[str, Any]]:
    return [
        {**to_word(word, transcript.duration_s), **_labels_of(segment)}
        for segment in transcript.segments
        for word in segment.words
    ]


def _labels_of(segment: Segment) -> dict[str, Any]:
    labels = {"channel": segment.channel, "speaker": segment.speaker}
    return {name: value for name, value in labels.items() if value is not None}


def _channel(transcript: Transcript, channel: int, *, with_words: bool) -> dict[str, Any]:
    alone = transcript.of_channel(channel)
    segments = [to_segment(segment, transcript.duration_s) for segment in alone.segments]
    words = {"words": _words(alone)} if with_words else {}
    return {"channel": channel, "text": alone.text, "segments": segments, **words}


def _word(word: Word, duration_s: float) -> dict[str, Any]:
    return {"word": word.text, "start": _seconds(word.start_s), "end": _seconds(min(word.end_s, duration_s))}


def _usage(transcript: Transcript) -> dict[str, Any]:
    # OpenAI counts whole seconds, rounded up; LiteLLM accepts only integers.
    return {"type": "duration", "seconds": math.ceil(transcript.duration_s)}


def _seconds(value: float) -> float:
    return round(value, 3)
