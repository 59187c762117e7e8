"""Requests as the READMEs of the replaced servers show them, in their terms."""

import csv
import io

import pytest
import srt
import webvtt

from testing.digit_strings import DigitString
from testing.media import as_wav
from testing.server import Server
from tests.server.clients.conftest import KEYS, MODEL

pytestmark = [pytest.mark.serve, pytest.mark.slow]


def test_the_model_is_loaded_at_the_start(server: Server) -> None:
    """ENABLE_LAZY_LOAD=false, and the others stay lazy."""
    assert server.model(MODEL)["state"] == "ready"
    assert server.model("parakeet-tdt-0.6b-v3")["state"] == "unloaded"


def test_what_as_readme_shows(server: Server, strings: list[DigitString]) -> None:
    """Only a file; an answer with segments, csv and srt."""
    spoken = strings[11]
    answer = server.client.post("/v1/audio/transcriptions", files={"file": ("audio.wav", as_wav(spoken))})
    body = answer.json()
    assert body["text"] == spoken.text
    assert body["language"] == "en"
    assert body["transcription_time"] > 0
    assert [segment["id"] for segment in body["segments"]] == list(range(len(body["segments"])))
    assert " ".join(segment["text"] for segment in body["segments"]) == spoken.text
    header, *lines = csv.reader(io.StringIO(body["csv_content"]))
    assert header[:2] == ["Start (s)", "End (s)"]
    assert [line[2] for line in lines] == [segment["text"] for segment in body["segments"]]
    assert [float(line[0]) for line in lines] == [segment["start"] for segment in body["segments"]]
    assert " ".join(cue.content.replace("\n", " ") for cue in srt.parse(body["srt_content"])) == spoken.text


def post_as_b(server: Server, spoken: DigitString, **fields: str) -> str:
    data = {"model": "whisper-1", **fields}
    answer = server.client.post("/v1/audio/transcriptions", files={"file": ("audio.wav", as_wav(spoken))}, data=data)
    assert answer.status_code == 200, answer.text
    return answer.json()["text"] if fields.get("response_format", "json").endswith("json") else answer.text


def test_bs_readme_shows_json_and_all_its_fields(server: Server, strings: list[DigitString]) -> None:
    assert post_as_b(server, strings[6]) == strings[6].text
    assert post_as_b(server, strings[6], response_format="json", language="en", prompt="Numbers.", temperature="0") == (
        strings[6].text
    )
    assert post_as_b(server, strings[6], response_format="verbose_json") == strings[6].text
    assert post_as_b(server, strings[6], response_format="text").strip() == strings[6].text


def test_bs_readme_shows_subtitles(server: Server, strings: list[DigitString]) -> None:
    cues = list(srt.parse(post_as_b(server, strings[6], response_format="srt")))
    assert " ".join(cue.content.replace("\n", " ") for cue in cues) == strings[6].text
    captions = webvtt.from_string(post_as_b(server, strings[6], response_format="vtt"))
    assert " ".join(caption.text.replace("\n", " ") for caption in captions.captions) == strings[6].text


def test_bs_key_is_needed(server: Server, strings: list[DigitString]) -> None:
    files = {"file": ("audio.wav", as_wav(strings[3]))}
    for headers in ({"Authorization": ""}, {"Authorization": "Bearer wrong"}):
        answer = server.client.post("/v1/audio/transcriptions", files=files, headers=headers)
        assert (answer.status_code, answer.json()["error"]["code"]) == (401, "invalid_api_key")
    assert KEYS[0] not in server.log


def test_the_finer_of_two_window_variables_counts(server: Server) -> None:
    """TRANSCRIBE_CHUNK_LEN is set, and CHUNK_MINITE too."""
    answer = server.client.post(
        "/v1/audio/transcriptions", files={"file": ("x.wav", b"x")}, data={"chunking_strategy": '{"window_s": 31}'}
    )
    assert "at most 30" in answer.json()["error"]["message"]
