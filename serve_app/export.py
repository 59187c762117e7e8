"""A transcript as the formats people download. Pure: text and plain objects, no I/O."""

import zlib
from typing import Any

from serve_app.transcript import Segment, Transcript

LANGUAGE_NAMES = {
    "bg": "bulgarian", "cs": "czech", "da": "danish", "de": "german", "el": "greek", "en": "english", "es": "spanish", "et":
    "estonian", "fi": "finnish", "fr": "french", "hr": "croatian", "hu": "hungarian", "it": "italian", "ja": "japanese", "lt":
    "lithuanian", "lv": "latvian", "mt": "maltese", "nl": "dutch", "pl": "polish", "pt": "portuguese", "ro": "romanian", "ru":
    "russian", "sk": "slovak", "sl": "slovenian", "sv": "swedish", "uk": "ukrainian",
}  # fmt: skip
"""OpenAI answers with the English name of a language, not its code."""


def to_text(transcript: Transcript) -> str:
    """The words alone, one line."""
    return transcript.text + "\n"


def to_json(transcript: Transcript) -> dict[str, Any]:
    """OpenAI's `json`."""
    return {"text": transcript.text, "usage": _usage(transcript)}


def to_verbose_json(transcript: Transcript, *, with_words: bool) -> dict[str, Any]:
    """OpenAI's `verbose_json`; words carry a `confidence` besides OpenAI's fields, and `warnings` stands only where there are
    any."""
    verbose: dict[str, Any] = {
        "task": "transcribe",
        "language": LANGUAGE_NAMES.get(transcript.language, transcript.language),
        "duration": _seconds(transcript.duration_s),
        "text": transcript.text,
        "segments": [_segment(segment, transcript.duration_s) for segment in transcript.segments],
    }
    if with_words:
        verbose["words"] = [
            {
                "word": word.text,
                "start": _seconds(word.start_s),
                "end": _seconds(min(word.end_s, transcript.duration_s)),
                "confidence": round(word.confidence, 4),
            }
            for word in transcript.words
        ]
    verbose["usage"] = _usage(transcript)
    if transcript.warnings:
        verbose["warnings"] = list(transcript.warnings)
    return verbose


def _segment(segment: Segment, duration_s: float) -> dict[str, Any]:
    text = segment.text.encode()
    return {
        "id": segment.index,
        "seek": int(segment.start_s * 100),
        "start": _seconds(segment.start_s),
        "end": _seconds(min(segment.end_s, duration_s)),
        "text": segment.text,
        "tokens": list(segment.token_ids),
        "temperature": 0.0,
        "avg_logprob": round(segment.mean_log_probability, 4),
        "compression_ratio": round(len(text) / len(zlib.compress(text)), 4),
        "no_speech_prob": 0.0,
    }


def _usage(transcript: Transcript) -> dict[str, Any]:
    return {"type": "duration", "seconds": _seconds(transcript.duration_s)}


def _seconds(value: float) -> float:
    return round(value, 3)
