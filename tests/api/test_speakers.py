"""`diarize`, `diarized_json` and known speakers, through the routes and a simulated diarizer."""

import base64
import csv
import io
import json
from itertools import groupby
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from httpx2 import Response
from openai.types.audio import (
    TranscriptionDiarized,
    TranscriptionTextDeltaEvent,
    TranscriptionTextDoneEvent,
    TranscriptionTextSegmentEvent,
)

from serve_app.api import create_api
from serve_app.api.speakers import MAX_URL_BYTES
from serve_app.cluster.status import ReplicaStatus
from serve_app.errors import ModelUnavailable
from serve_app.settings import DiarizerSettings, LimitSettings
from serve_app.window import SAMPLE_RATE
from testing import media
from testing.fake_service import NOISE, FakeService, assert_error, post
from testing.open_requests import until
from testing.voices import conversation, data_url, tone
from tests.api.test_early import Upload, at_once, form

TALK = media.wav(conversation([(2, 6.0), (0, 5.0), (2, 4.0), (1, 6.0)]).astype(np.float32) / 32768)
SPEAKERS = ["A", "B", "A", "C"]
WORDS = {"timestamp_granularities[]": "word"}
KNOWN = {"known_speaker_names[]": ["Cy", "Ann"], "known_speaker_references[]": [data_url(1), data_url(0)]}


@pytest.fixture
def server() -> FakeService:
    settings = tuple(DiarizerSettings(name=name, source="simulated") for name in ("speakers", "others"))
    return FakeService(diarizers=settings, limits=LimitSettings())


def ask(client: TestClient, **fields: Any) -> Response:
    response = post(client, TALK, **fields)
    assert response.status_code == 200, response.text
    return response


def names(segments: Any) -> list[str | None]:
    return [name for name, _ in groupby(segment.get("speaker") for segment in segments)]


def events_of(response: Response) -> list[Any]:
    return [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line.startswith("data: ")]


def test_diarized_json_is_that_of_openai(client: TestClient) -> None:
    body = ask(client, response_format="diarized_json", model="gpt-4o-transcribe-diarize", chunking_strategy="auto").json()
    found = TranscriptionDiarized.model_validate(body, strict=True)
    assert set(body) == {"task", "duration", "text", "segments", "usage"}
    assert all(set(segment) == {"type", "id", "start", "end", "text", "speaker"} for segment in body["segments"])
    assert names(body["segments"]) == SPEAKERS
    assert [segment.id for segment in found.segments] == [f"seg_{n}" for n in range(len(found.segments))]
    assert found.text == " ".join(segment.text for segment in found.segments) == ask(client).json()["text"]
    assert found.duration == pytest.approx(31.0)
    assert all(a.end <= b.start for a, b in zip(found.segments, found.segments[1:], strict=False))


def test_a_stream_of_diarized_json_has_segments(client: TestClient) -> None:
    *events, done = events_of(ask(client, response_format="diarized_json", stream="true"))
    whole = ask(client, response_format="diarized_json").json()
    assert events[1::2] == whole["segments"]
    for delta, segment in zip(events[::2], events[1::2], strict=True):
        TranscriptionTextSegmentEvent.model_validate(segment, strict=True)
        assert TranscriptionTextDeltaEvent.model_validate(delta, strict=True).segment_id == segment["id"]
        assert delta["delta"].strip() == segment["text"]
    assert TranscriptionTextDoneEvent.model_validate(done).text == whole["text"]
    assert done["content"] == whole


def test_another_stream_names_the_speaker_of_each_text(client: TestClient) -> None:
    *events, done = events_of(ask(client, diarize="true", stream="true", response_format="srt"))
    assert {event["type"] for event in events} == {"transcript.text.delta"}
    assert names(events) == SPEAKERS
    assert "".join(event["delta"] for event in events) == done["text"]
    assert "\nB: " in done["content"]


def test_verbose_json_has_the_speaker_of_segments_and_words(client: TestClient) -> None:
    body = ask(client, response_format="verbose_json", diarize="true", **WORDS).json()
    plain = ask(client, response_format="verbose_json", **WORDS).json()
    assert names(body["segments"]) == names(body["words"]) == SPEAKERS
    assert [word | {"speaker": ""} for word in plain["words"]] == [word | {"speaker": ""} for word in body["words"]]
    assert "speaker" not in plain["words"][0]
    assert "speaker" not in plain["segments"][0]
    assert "warnings" not in body


def test_every_format_names_the_speakers(client: TestClient) -> None:
    body = ask(client, diarize="true").json()

    def written(response_format: str, **fields: Any) -> str:
        return ask(client, response_format=response_format, diarize="true", **fields).text

    assert written("text") == ask(client, response_format="text").text
    assert json.loads(written("json")) == ask(client, response_format="json").json()
    table = list(csv.reader(io.StringIO(written("csv"))))
    assert table[0] == ["Start (s)", "End (s)", "Text", "Speaker"]
    assert [(row[2], row[3]) for row in table[1:]] == [(s["text"], s["speaker"]) for s in body["segments"]]
    lines = [line.split("\t") for line in written("tsv").splitlines()]
    assert lines[0] == ["start", "end", "text", "speaker"]
    assert [line[2:] for line in lines[1:]] == [[s["text"], s["speaker"]] for s in body["segments"]]
    assert body["srt_content"] == written("srt")
    assert body["csv_content"] == written("csv")
    for mark in ("A: ", "B: ", "C: "):
        assert f"\n{mark}" in written("srt")
        assert f"\n<v {mark[0]}>" in written("vtt")
    strange = KNOWN | {"known_speaker_names[]": ["a < b & c\\h", "Ann"]}
    assert "\n<v a &lt; b &amp; c\\h>" in written("vtt", **strange)
    assert "\na < b & c\\h: " in written("srt", **strange)
    times = KNOWN | {"known_speaker_names[]": ["00:00:00,000 --> 00:00:09,000", "Ann"]}
    assert "\n00:00:00,000 -> 00:00:09,000: " in written("srt", **times)


@pytest.mark.parametrize("spelling", ["{}", "{}[]"])
def test_known_speakers(client: TestClient, server: FakeService, spelling: str) -> None:
    fields = {spelling.format(name.removesuffix("[]")): value for name, value in KNOWN.items()}
    body = ask(client, response_format="diarized_json", **fields).json()
    assert names(body["segments"]) == ["A", "Ann", "A", "Cy"]
    assert "warnings" not in body


def test_references_of_any_format(client: TestClient) -> None:
    mp3 = media.encode((tone(1, 3.0) / 32768).astype(np.float32), SAMPLE_RATE, "mp3", "libmp3lame")
    urls = [f'DATA:audio/mpeg;name="a,b";base64 ,{base64.b64encode(mp3).decode()}', data_url(0, 10.1)]
    body = ask(client, response_format="diarized_json", **KNOWN | {"known_speaker_references[]": urls}).json()
    assert names(body["segments"]) == ["A", "Ann", "A", "Cy"]


def test_a_warning_for_a_reference_that_names_nobody(client: TestClient) -> None:
    fields = {"known_speaker_names[]": ["Ann", "Bo"], "known_speaker_references[]": [data_url(0), data_url(0)]}
    body = ask(client, response_format="diarized_json", **fields).json()
    assert "sound alike" in body["warnings"][0]
    assert names(body["segments"])[1] in ("Ann", "Bo")


URL = data_url(0)
NAMES, REFERENCES = "known_speaker_names[]", "known_speaker_references[]"


@pytest.mark.parametrize(
    ("fields", "param", "part"),
    [
        ({NAMES: ["Ann"]}, NAMES, "names: 1, references: 0"),
        ({REFERENCES: [URL]}, NAMES, "names: 0, references: 1"),
        ({NAMES: list("abcde"), REFERENCES: [URL] * 5}, NAMES, "At most 4 speakers"),
        ({NAMES: list("abcdefghi"), REFERENCES: [URL] * 9}, None, "Too many files"),
        ({NAMES: ["Ann", " Ann"], REFERENCES: [URL] * 2}, NAMES, "same name"),
        ({NAMES: ["x" * 65], REFERENCES: [URL]}, NAMES, "64 printable"),
        ({NAMES: ["a\x07b"], REFERENCES: [URL]}, NAMES, "64 printable"),
        ({NAMES: ["Ann"], REFERENCES: ["https://example.org/ann.wav"]}, REFERENCES, "`Ann` is no data URL"),
        ({NAMES: ["Ann"], REFERENCES: ["data:audio/wav;base64,x"]}, REFERENCES, "`Ann` is no data URL"),
        ({NAMES: ["Ann"], REFERENCES: ["data:audio/wav;base64,aGVsbG8="]}, REFERENCES, "The reference of the speaker `Ann`"),
        ({NAMES: ["Ann"], REFERENCES: ["data:,"]}, REFERENCES, "The reference of the speaker `Ann`"),
        ({NAMES: ["Ann"], REFERENCES: [data_url(0, 1.7)]}, REFERENCES, "lasts 1.7 s"),
        ({NAMES: ["Ann"], REFERENCES: [data_url(0, 10.3)]}, REFERENCES, "lasts 10.3 s"),
        ({NAMES: ["Ann"], REFERENCES: ["data:," + "x" * MAX_URL_BYTES]}, REFERENCES, "larger than 8 MB"),
        ({"diarize": "maybe"}, "diarize", "diarize"),
        ({"diarize": "false"}, "diarize", "does not go with `diarize=false`"),
        ({"diarizer": "nobody"}, "diarizer", "`nobody`, only speakers, others"),
        ({"multichannel": "true"}, "response_format", "`multichannel` does not go with"),
    ],
)
def test_what_cannot_be_done_is_refused(client: TestClient, fields: dict[str, Any], param: str | None, part: str) -> None:
    response = post(client, TALK, response_format="diarized_json", **fields)
    code = response.json()["error"]["code"]
    assert code in ("invalid_request", "invalid_audio", "invalid_value")
    assert part in assert_error(response, 400, code, param)


@pytest.mark.parametrize("field", [NAMES, "diarizer"])
def test_what_only_speakers_need_is_refused_without(client: TestClient, field: str) -> None:
    value = KNOWN if field == NAMES else {"diarizer": "speakers"}
    assert "needs `diarize=true`" in assert_error(post(client, NOISE, **value), 400, "invalid_request", field)


def test_not_with_channels(client: TestClient) -> None:
    assert_error(post(client, NOISE, diarize="true", multichannel="true"), 400, "invalid_request", "diarize")


def test_translations_have_no_diarized_json(client: TestClient) -> None:
    files, data = {"file": ("x.wav", NOISE)}, {"response_format": "diarized_json"}
    response = client.post("/v1/audio/translations", files=files, data=data)
    assert_error(response, 400, "invalid_request", "response_format")


@pytest.mark.parametrize(("fields", "param"), [({"diarize": "optional"}, "diarize"), ({}, "response_format")])
def test_a_server_without_diarizers_says_so(fields: dict[str, str], param: str) -> None:
    with TestClient(create_api(FakeService().service)) as client:
        response = post(client, NOISE, response_format="diarized_json", **fields)
    assert "identifies no speakers" in assert_error(response, 400, "invalid_request", param)


class TestUnavailable:
    @pytest.fixture(autouse=True)
    def unavailable(self, server: FakeService) -> None:
        server.diarizer.unavailable = ModelUnavailable("The diarizer `speakers` is not loaded yet.", param="diarize")

    @pytest.mark.parametrize("stream", ["true", "false"])
    def test_it_is_503_with_the_reason(self, client: TestClient, stream: str) -> None:
        response = post(client, TALK, diarize="true", stream=stream, **{"include[]": "progress"})
        assert "`speakers` is not loaded" in assert_error(response, 503, "model_unavailable", "diarize")
        assert response.headers["Retry-After"]

    def test_or_a_warning_where_speakers_are_optional(self, client: TestClient) -> None:
        body = ask(client, diarize="optional").json()
        assert names(body["segments"]) == [None]
        assert body["warnings"] == ["The speakers are unknown: The diarizer `speakers` is not loaded yet."]
        assert body["csv_content"].startswith("Start (s),End (s),Text\r\n")
        diarized = ask(client, diarize="optional", response_format="diarized_json").json()
        TranscriptionDiarized.model_validate(diarized, strict=True)
        assert names(diarized["segments"]) == ["unknown"]
        assert diarized["warnings"] == body["warnings"]


@pytest.mark.parametrize("response_format", ["verbose_json", "text", "srt", "vtt", "csv", "tsv", "json", "diarized_json"])
def test_an_export_has_the_speakers_too(client: TestClient, response_format: str) -> None:
    body = ask(client, response_format="verbose_json", diarize="true").json()
    given = {key: body[key] for key in ("language", "duration", "segments")} | {"response_format": response_format}
    exported = client.post("/v1/audio/transcriptions/export", json=given)
    expected = ask(client, response_format=response_format, diarize="true", **WORDS)
    if response_format == "verbose_json":
        assert exported.json()["segments"] == expected.json()["segments"]
        assert [w["speaker"] for w in exported.json()["words"]] == [w["speaker"] for w in expected.json()["words"]]
    else:
        assert exported.text == expected.text


@pytest.mark.parametrize("name", ["x" * 65, "", "a\nb", "\x01"])
def test_an_export_with_such_a_name_is_refused(client: TestClient, name: str) -> None:
    given = {"duration": 3, "segments": [{"start": 0, "end": 1, "text": "one", "speaker": name}], "response_format": "text"}
    assert_error(client.post("/v1/audio/transcriptions/export", json=given), 400, "invalid_value", "segments")


def test_what_the_server_tells_of_its_diarizers(client: TestClient, server: FakeService) -> None:
    assert client.get("/v1/models/first").json()["diarizers"] == ["speakers", "others"]
    loaded = ReplicaStatus("a", "ready", device="cpu", precision="fp32", batches=7)
    server.replicas = {"first": (ReplicaStatus("b", "ready"),), "speakers": (loaded,)}
    speakers, others = client.get("/ready").json()["diarizers"]
    assert speakers == {
        **{"id": "speakers", "state": "ready", "detail": "", "device": "cpu", "precision": "fp32"},
        **{"replicas": 1, "steps": 7},
    }
    assert others["state"] == "unloaded"


def test_the_description_has_references_as_text(client: TestClient) -> None:
    forms = client.get("/openapi.json").json()["components"]["schemas"]
    form = forms["Body_transcribe_v1_audio_transcriptions_post"]["properties"]
    assert form[REFERENCES]["items"]["format"] == "uri"
    assert "diarized_json" in form["response_format"]["enum"]
    assert "TranscriptSegment" in forms


async def test_references_come_before_a_file_that_is_still_arriving(server: FakeService) -> None:
    """They are files of the form, too."""
    app = create_api(server.service)
    talk = media.wav((conversation([(n % 2, 6.0) for n in range(14)]) / 32768).astype(np.float32))
    body = form(talk, {"response_format": "diarized_json", NAMES: "Ann", REFERENCES: data_url(1)})
    upload = Upload(app, body)
    upload.send(1_000_000)
    await until(lambda: len(server.windows) >= 2 and len(server.diarizer.chunks) >= 10)
    answer = await upload.finish()
    windows = len(server.windows)
    assert {segment["speaker"] for segment in answer.json()["segments"]} == {"A", "Ann"}
    assert answer.json() == (await at_once(app, body)).json()
    assert len(server.windows) == 2 * windows
