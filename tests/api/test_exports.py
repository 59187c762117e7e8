"""Exports: a transcript is rendered in another format, byte for byte as a transcription in that format is."""

import asyncio
import json
from typing import Any, ClassVar

import numpy as np
import pytest
from fastapi.testclient import TestClient

from serve_app.api import create_api, exports
from serve_app.api.exports import MAX_S, MAX_WORDS, PATH
from serve_app.api.limits import MAX_BODY_BYTES
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.output import cues
from serve_app.output.cues import MAX_CUE_UNITS
from serve_app.window import SAMPLE_RATE, Samples
from testing import media
from testing.fake_service import EngineService, assert_error, post
from testing.open_requests import OpenRequest, until

FORMATS = ["text", "srt", "vtt", "csv", "tsv", "json", "verbose_json"]
SEGMENT = {"start": 1, "end": 3, "text": "One two."}


@pytest.fixture
def server(engine: ParakeetEngine) -> EngineService:
    return EngineService(engine)


@pytest.fixture(scope="module")
def recording(speech: Samples) -> bytes:
    """80 s, several windows."""
    return media.wav(np.tile(speech, 3)[: 80 * SAMPLE_RATE + 17])


@pytest.fixture
def verbose(client: TestClient, recording: bytes) -> dict[str, Any]:
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
    answer: dict[str, Any] = post(client, recording, **fields).json()
    return answer


def export(client: TestClient, response_format: str, transcript: dict[str, Any]) -> Any:
    return client.post(PATH, json={**transcript, "response_format": response_format})


def test_every_format(client: TestClient, recording: bytes, verbose: dict[str, Any]) -> None:
    for response_format in FORMATS:
        fields = {"response_format": response_format, "timestamp_granularities[]": ["word", "segment"]}
        answer, exported = post(client, recording, **fields), export(client, response_format, verbose)
        assert exported.content == answer.content
        assert exported.headers["content-type"] == answer.headers["content-type"]


def test_ends_after_the_audio_are_clipped(client: TestClient, speech: Samples) -> None:
    """The WebSocket sends segments before the duration of the audio is known."""
    fields = {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
    answer = post(client, media.wav(speech[: 2 * SAMPLE_RATE + 777]), **fields)
    given = answer.json()
    assert given["segments"]
    given["duration"] = round(given["segments"][-1]["end"] - 0.03, 3)
    exported = export(client, "verbose_json", given).json()
    for last in (exported["segments"][-1], exported["segments"][-1]["words"][-1], exported["words"][-1]):
        assert last["end"] == given["duration"]


def test_cues_can_be_shaped(client: TestClient, recording: bytes, verbose: dict[str, Any]) -> None:
    changes = {"max_lines": 1, "max_line_chars": 12}
    answer = post(client, recording, response_format="srt", **changes)
    assert export(client, "srt", {**verbose, **changes}).content == answer.content
    assert answer.content != export(client, "srt", verbose).content


def test_an_edited_text(client: TestClient, verbose: dict[str, Any]) -> None:
    segment = verbose["segments"][1]
    segment["text"] = " ".join("uno" for _ in segment["words"])
    exported = export(client, "verbose_json", verbose).json()
    assert [word["word"] for word in exported["segments"][1]["words"]] == ["uno"] * len(segment["words"])
    assert [word["start"] for word in exported["segments"][1]["words"]] == [word["start"] for word in segment["words"]]
    assert segment["text"] in exported["text"]
    assert "uno" in export(client, "srt", verbose).text
    segment["text"] = "More words than there were in the model's transcript."
    exported = export(client, "verbose_json", verbose).json()["segments"][1]
    assert " ".join(word["word"] for word in exported["words"]) == segment["text"]
    assert exported["words"][0]["start"] == segment["start"]
    assert exported["words"][-1]["end"] == segment["end"]


def test_the_latest_times(client: TestClient) -> None:
    segments = [{"start": MAX_S, "end": MAX_S, "text": text} for text in ("One.", "Two.")]
    for response_format in ("srt", "vtt"):
        assert "99:00:0" in export(client, response_format, {"duration": MAX_S, "segments": segments}).text


def test_start_end_and_text_are_enough(client: TestClient) -> None:
    given = {"duration": 4, "segments": [SEGMENT]}
    assert export(client, "csv", given).text == "Start (s),End (s),Text\r\n1.000,3.000,One two.\r\n"
    assert "00:00:01,000 --> 00:00:03" in export(client, "srt", given).text
    assert export(client, "text", {"duration": 0, "segments": []}).text == "\n"


@pytest.mark.parametrize(
    "change",
    [
        {"start": 4},
        {"start": -1},
        {"end": 360_000},
        {"text": None},
        {"words": [{"word": "One", "start": 2.5, "end": 2, "probability": 1}]},
    ],
)
def test_invalid_segments(client: TestClient, change: dict[str, Any]) -> None:
    assert_error(export(client, "srt", {"duration": 4, "segments": [{**SEGMENT, **change}]}), 400, "invalid_value", "segments")


@pytest.mark.parametrize("body", [b"", b"{", b"[]"])
def test_a_body_that_is_no_object(client: TestClient, body: bytes) -> None:
    answer = client.post(PATH, content=body, headers={"content-type": "application/json"})
    assert assert_error(answer, 400, "invalid_value").startswith("The body is ")


class TestWork:
    """What an export may cost. The words are at one instant, which no maximum duration of a cue separates."""

    WIDEST: ClassVar = {"max_lines": 10, "max_line_chars": 500, "max_cue_s": 60}

    @staticmethod
    def body(words: int) -> bytes:
        segment = {"start": 0, "end": 0, "text": "a " * words}
        return json.dumps({"response_format": "srt", "duration": 1, "segments": [segment], **TestWork.WIDEST}).encode()

    @pytest.mark.parametrize("text", ["a " * (MAX_WORDS + 1), "あ" * (MAX_WORDS + 1)])
    def test_the_words_are_limited(self, client: TestClient, text: str) -> None:
        transcript = {"duration": 4, "segments": [{**SEGMENT, "text": text}]}
        assert "100,000 words" in assert_error(export(client, "text", transcript), 400, "invalid_value", "segments")

    def test_a_body_that_would_fill_the_memory(self, client: TestClient) -> None:
        headers = {"content-type": "application/json"}
        announced = client.post(PATH, content=b"{}", headers={**headers, "content-length": str(MAX_BODY_BYTES + 1)})
        assert_error(announced, 413, "upload_too_large", None)
        unannounced = client.post(PATH, content=iter([b"{}", bytes(MAX_BODY_BYTES)]), headers=headers)
        assert_error(unannounced, 413, "upload_too_large", None)

    async def test_a_body_that_claims_to_be_a_form_is_not_larger(self, server: EngineService) -> None:
        request = OpenRequest(create_api(server.service), PATH, {"content-type": "multipart/form-data; boundary=x"})
        for _ in range(3):
            request.send(bytes(MAX_BODY_BYTES // 2))
        assert_error(await request.response(), 413, "upload_too_large")

    @pytest.mark.parametrize("field", ["duration", "segments"])
    def test_a_missing_field(self, client: TestClient, field: str) -> None:
        transcript = {"duration": 4, "segments": []}
        del transcript[field]
        assert_error(export(client, "text", transcript), 400, "missing_required_parameter", field)

    def test_a_body_that_is_not_json(self, client: TestClient) -> None:
        assert_error(client.post(PATH, content=b'{"segments": "\\ud800"}'), 400, "invalid_value")

    async def test_it_ends_with_its_client(self, server: EngineService, monkeypatch: pytest.MonkeyPatch) -> None:
        steps, reading_ms = 0, cues._reading_ms

        def counted(chars: int, rules: cues.CueRules) -> int:
            nonlocal steps
            steps += 1
            return reading_ms(chars, rules)

        monkeypatch.setattr(cues, "_reading_ms", counted)
        request = OpenRequest(create_api(server.service), PATH, {"content-type": "application/json", "content-length": "1"})
        request.send(self.body(50_000), more_body=False)
        await until(lambda: steps > 0)
        await request.leave()
        left = steps
        # Each step beyond those of one checkpoint is work for nobody; all of them are fifteen million.
        await asyncio.sleep(0.1)
        assert steps <= left + MAX_CUE_UNITS

    async def test_few_are_in_progress_at_once(self, server: EngineService, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exports, "MAX_EXPORTS_PER_ADDRESS", 1)
        app, headers = create_api(server.service), {"content-type": "application/json", "content-length": "1"}
        first = OpenRequest(app, PATH, headers)
        await asyncio.sleep(0)
        assert_error(await OpenRequest(app, PATH, headers).response(), 429, "overloaded")
        other = OpenRequest(app, PATH, headers, "192.0.2.2")
        for request in (first, other):
            request.send(self.body(10), more_body=False)
            assert (await request.response()).status_code == 200

    async def test_a_body_must_arrive_soon(self, server: EngineService, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(exports, "MAX_UPLOAD_S", 0.05)
        request = OpenRequest(create_api(server.service), PATH, {"content-type": "application/json", "content-length": "9"})
        request.send(b"{")
        assert_error(await request.response(), 408, "upload_too_slow")
