"""What OpenAI's client must get for a digit string, in every format."""

import math
from collections.abc import Callable

import srt
import webvtt
from openai.types.audio import (
    Transcription,
    TranscriptionVerbose,
)

from serve_app.window import SAMPLE_RATE
from testing.digit_strings import DigitString


def plain(text: str) -> str:
    return " ".join(text.split())


def is_text(answer: object, spoken: DigitString) -> None:
    assert answer == spoken.text + "\n"


def is_srt(answer: object, spoken: DigitString) -> None:
    assert plain(" ".join(cue.content for cue in srt.parse(str(answer)))) == spoken.text


def is_vtt(answer: object, spoken: DigitString) -> None:
    assert plain(" ".join(caption.text for caption in webvtt.from_string(str(answer)).captions)) == spoken.text


def is_json(answer: object, spoken: DigitString) -> None:
    assert isinstance(answer, Transcription)
    assert answer.text == spoken.text
    assert answer.usage is not None
    assert answer.usage.type == "duration"
    assert answer.usage.seconds == math.ceil(len(spoken.samples) / SAMPLE_RATE)
    # OpenAI's fields and no others.
    assert set(answer.model_dump(exclude_unset=True)) == {"text", "usage"}


def is_verbose(answer: object, spoken: DigitString) -> None:
    assert isinstance(answer, TranscriptionVerbose)
    assert answer.text == spoken.text
    assert answer.language == "english"
    assert answer.segments is not None
    assert " ".join(segment.text for segment in answer.segments) == spoken.text
    for segment in answer.segments:
        numbers = (segment.avg_logprob, segment.compression_ratio, segment.no_speech_prob, segment.temperature)
        assert all(isinstance(number, float) for number in numbers)
        assert segment.avg_logprob < 0
        assert segment.tokens


FORMATS: dict[str, Callable[[object, DigitString], None]] = {
    "json": is_json,
    "text": is_text,
    "srt": is_srt,
    "vtt": is_vtt,
    "verbose_json": is_verbose,
}
