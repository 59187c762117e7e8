"""A transcript as text, and as the JSON objects of OpenAI's transcription API."""

import math
import zlib
from collections.abc import Sequence
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


def to_text(transcript: Transcript) -> str:
    """OpenAI's `text`: the transcript on one line, with a line end."""
    return transcript.text + "\n"


def to_json(transcript: Transcript, *, with_logprobs: bool = False) -> dict[str, Any]:
    """OpenAI's `json`: the text, `usage` and optionally `logprobs`."""
    logprobs = {"logprobs": to_logprobs(transcript.tokens)} if with_logprobs else {}
    return {"text": transcript.text, **logprobs, "usage": _usage(transcript)}


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
    """OpenAI's `verbose_json`, with three additions.

    Words have a `confidence`. Segments have `words`, as in Whisper's own JSON. `warnings` is present if there are any.
    """
    verbose: dict[str, Any] = {
        "task": task,
        "language": LANGUAGE_NAMES.get(transcript.language, transcript.language),
        "duration": _seconds(transcript.duration_s),
        "text": transcript.text,
        "segments": [to_segment(segment, transcript.duration_s) for segment in transcript.segments],
    }
    if with_words:
        verbose["words"] = [to_word(word, transcript.duration_s) for word in transcript.words]
    if with_logprobs:
        verbose["logprobs"] = to_logprobs(transcript.tokens)
    verbose["usage"] = _usage(transcript)
    if transcript.warnings:
        verbose["warnings"] = list(transcript.warnings)
    return verbose


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
    }


def to_word(word: Word, duration_s: float = math.inf) -> dict[str, Any]:
    """A word of `verbose_json`. Its end is limited to `duration_s`, the length of the audio."""
    return {**_word(word, duration_s), "confidence": round(word.confidence, 4)}


def _word(word: Word, duration_s: float) -> dict[str, Any]:
    return {"word": word.text, "start": _seconds(word.start_s), "end": _seconds(min(word.end_s, duration_s))}


def _usage(transcript: Transcript) -> dict[str, Any]:
    # OpenAI counts whole seconds, rounded up; LiteLLM accepts only integers.
    return {"type": "duration", "seconds": math.ceil(transcript.duration_s)}


def _seconds(value: float) -> float:
    return round(value, 3)
