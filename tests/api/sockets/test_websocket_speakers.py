"""Seed A's WebSocket protocol with speakers: media files as over REST; raw samples have none."""

import base64
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from serve_app.api.websocket import END, FILES_ONLY
from serve_app.errors import ModelUnavailable
from serve_app.settings import DiarizerSettings, LimitSettings
from serve_app.window import SAMPLE_RATE
from testing import media
from testing.fake_service import FakeService, post
from testing.seed_socket_client import failure, transcribed
from testing.voices import conversation, tone

TALK = media.wav(conversation([(2, 6.0), (0, 5.0), (2, 4.0), (1, 6.0)]).astype(np.float32) / 32768)
SAMPLES = {"encoding": "pcm_s16le"}


def reference(voice: int) -> str:
    """An MP3, which is small enough for the first message."""
    data = media.encode((tone(voice, 3.0) / 32768).astype(np.float32), SAMPLE_RATE, "mp3", "libmp3lame", bit_rate=32_000)
    return f"data:audio/mpeg;base64,{base64.b64encode(data).decode()}"


KNOWN = {"known_speaker_names": ["Cy", "Ann"], "known_speaker_references": [reference(1), reference(0)]}


@pytest.fixture
def server() -> FakeService:
    return FakeService(diarizers=(DiarizerSettings(name="speakers", source="simulated"),), limits=LimitSettings())


@pytest.mark.parametrize("known", [{}, KNOWN])
def test_a_file_is_as_over_rest(client: TestClient, known: dict[str, Any]) -> None:
    *segments, last = transcribed(client, TALK, {"diarize": True, **known}, 32_000)
    answer = post(client, TALK, diarize="true", **{f"{name}[]": value for name, value in known.items()}).json()
    assert [(s["text"], s["speaker"]) for s in segments] == [(s["text"], s["speaker"]) for s in answer["segments"]]
    assert {segment["speaker"] for segment in segments} == ({"A", "Ann", "Cy"} if known else {"A", "B", "C"})
    for name in ("text", "csv_content", "srt_content"):
        assert last[name] == answer[name]
    assert "warnings" not in last


def test_an_optional_diarizer_that_is_away_is_a_warning(client: TestClient, server: FakeService) -> None:
    server.diarizer.unavailable = ModelUnavailable("It is away.", param="diarize")
    *segments, last = transcribed(client, TALK, {"diarize": "optional"}, 32_000)
    assert last["warnings"] == ["The speakers are unknown: It is away."]
    assert not any("speaker" in segment for segment in segments)
    error = failure(client, [{"diarize": True}, TALK, END], 1013)
    assert (error["code"], error["param"]) == ("model_unavailable", "diarize")


@pytest.mark.parametrize(
    ("asked", "param"),
    [
        ({"diarize": True, "multichannel": True}, "diarize"),
        ({"diarize": "maybe"}, "diarize"),
        ({"diarize": True, "diarizer": "nobody"}, "diarizer"),
        ({"diarizer": "speakers"}, "diarizer"),
        ({"diarize": True, "known_speaker_names": ["Ann"]}, "known_speaker_names[]"),
        ({"diarize": True, "known_speaker_names": ["Ann"], "known_speaker_references": ["Ann"]}, "known_speaker_references[]"),
        (
            {"diarize": True, "known_speaker_names": ["Ann"], "known_speaker_references": ["\ud800"]},
            "known_speaker_references[]",
        ),
    ],
)
def test_what_cannot_be_done_is_refused(client: TestClient, asked: dict[str, Any], param: str) -> None:
    assert failure(client, [asked, TALK, END], 1007)["param"] == param


def test_raw_samples_have_no_speakers(client: TestClient) -> None:
    samples = TALK[44:]
    error = failure(client, [{**SAMPLES, "diarize": True}, samples, END], 1007)
    assert (error["error"], error["param"]) == (FILES_ONLY, "diarize")
    assert transcribed(client, samples, {**SAMPLES, "diarize": "optional"}, 32_000)[-1]["warnings"] == [FILES_ONLY]
