"""Text and JSON formats, validated with the types of OpenAI's client."""

import math

import pytest
from openai.types.audio import Transcription, TranscriptionVerbose

from serve_app.api.schemas import TranscriptionJson, TranscriptionVerboseJson
from serve_app.output.export import to_json, to_text, to_verbose_json
from serve_app.output.segments import Segmenter
from serve_app.transcript import Transcript
from tests.output.test_segments import SPOKEN


@pytest.fixture
def transcript() -> Transcript:
    segmenter = Segmenter()
    segments = (*segmenter.add(SPOKEN), *segmenter.finish())
    return Transcript(segments, duration_s=3.45678, model="digits", language="en")


def test_text(transcript: Transcript) -> None:
    assert to_text(transcript) == "Seven two. Nine.\n"


def test_json(transcript: Transcript) -> None:
    body = to_json(transcript)
    assert body == {"text": "Seven two. Nine.", "usage": {"type": "duration", "seconds": 4}}
    Transcription.model_validate(body)
    TranscriptionJson.model_validate(body)


def test_verbose_json_parses_as_openais_type(transcript: Transcript) -> None:
    body = to_verbose_json(transcript, with_words=True)
    parsed = TranscriptionVerbose.model_validate(body)
    assert parsed.language == "english"
    assert parsed.segments is not None
    assert parsed.words is not None
    assert [segment.text for segment in parsed.segments] == ["Seven two.", "Nine."]
    assert [word.word for word in parsed.words] == ["Seven", "two.", "Nine."]
    ours = TranscriptionVerboseJson.model_validate(body)
    assert set(body) == set(ours.model_dump(exclude_none=True))


def test_end_times_are_limited_to_the_audio(transcript: Transcript) -> None:
    body = to_verbose_json(transcript, with_words=True)
    assert body["segments"][-1]["end"] == body["words"][-1]["end"] == 3.457


def test_segment_statistics_are_computed(transcript: Transcript) -> None:
    segment = to_verbose_json(transcript, with_words=False)["segments"][0]
    assert segment["avg_logprob"] == pytest.approx(math.log(0.9), abs=1e-4)
    assert segment["tokens"] == [0, 1, 2, 3]
    assert segment["seek"] == 100
    assert 0 < segment["compression_ratio"] < 2


def test_words_are_absent_unless_asked_for_and_warnings_if_there_are_none(transcript: Transcript) -> None:
    body = to_verbose_json(transcript, with_words=False)
    assert "words" not in body
    assert "warnings" not in body


def test_an_empty_transcript() -> None:
    empty = Transcript((), duration_s=5.0, model="digits", language="en")
    assert to_text(empty) == "\n"
    assert to_json(empty)["text"] == ""
    assert to_verbose_json(empty, with_words=True) == {
        "task": "transcribe",
        "language": "english",
        "duration": 5.0,
        "text": "",
        "segments": [],
        "words": [],
        "usage": {"type": "duration", "seconds": 5},
    }
