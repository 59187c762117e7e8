"""The REST routes on the real pipeline and decoder, with a simulated engine."""

from collections.abc import Iterator

import numpy as np
import pytest
from fastapi.testclient import TestClient
from openai.types.audio.transcription import Logprob

from serve_app.api.schemas import TranscriptionDefault
from serve_app.errors import EngineError, ModelUnavailable, Overloaded, SpeechError
from serve_app.window import Lane
from testing import media
from testing.fake_service import NOISE, FakeService, assert_error, post


class TestTranscriptions:
    def test_the_default_has_the_fields_that_clients_of_other_servers_expect(self, client: TestClient) -> None:
        body = post(client).json()
        TranscriptionDefault.model_validate(body)
        assert set(body) == {
            *("task", "text", "segments", "language", "duration", "usage"),
            *("transcription_time", "total_request_time_server", "csv_content", "srt_content"),
        }
        assert 0 < body["transcription_time"] < body["total_request_time_server"]
        assert body["csv_content"] == post(client, response_format="csv").text
        assert body["srt_content"] == post(client, response_format="srt").text
        assert body["segments"] == post(client, response_format="verbose_json").json()["segments"]

    @pytest.mark.parametrize(
        ("response_format", "media_type", "begins"),
        [
            ("srt", "text/plain", "1\n00:00:00,"),
            ("vtt", "text/plain", "WEBVTT\n"),
            ("csv", "text/csv", "Start (s),End (s),Text\r\n"),
            ("tsv", "text/tab-separated-values", "start\tend\ttext\n"),
        ],
    )
    def test_subtitles_and_tables(self, client: TestClient, response_format: str, media_type: str, begins: str) -> None:
        answer = post(client, response_format=response_format)
        assert answer.headers["content-type"] == f"{media_type}; charset=utf-8"
        assert answer.text.startswith(begins)
        for word in post(client).json()["text"].split():
            assert word in answer.text

    def test_cues_can_be_shaped_per_request(self, client: TestClient) -> None:
        default = post(client, response_format="srt").text
        narrow = post(client, response_format="srt", max_line_chars="8", max_lines="1").text
        assert narrow.count("-->") > default.count("-->")
        lines = [line for line in narrow.splitlines() if line.startswith("w")]
        assert max(map(len, lines)) <= 8
        assert_error(post(client, response_format="srt", max_lines="0"), 400, "invalid_value", "max_lines")

    def test_json(self, client: TestClient) -> None:
        body = post(client, response_format="json").json()
        assert set(body) == {"text", "usage"}
        assert body["text"].startswith("w")
        assert body["usage"] == {"type": "duration", "seconds": 3.0}

    def test_text(self, client: TestClient) -> None:
        response = post(client, response_format="text")
        assert response.headers["content-type"].startswith("text/plain")
        assert response.text == post(client).json()["text"] + "\n"

    def test_verbose_json(self, client: TestClient) -> None:
        body = post(client, response_format="verbose_json").json()
        assert body["text"] == " ".join(segment["text"] for segment in body["segments"])
        assert "words" not in body

    def test_words(self, client: TestClient) -> None:
        body = post(client, response_format="verbose_json", **{"timestamp_granularities[]": ["word", "segment"]}).json()
        assert [word["word"] for word in body["words"]] == body["text"].split()
        assert all(word["start"] < word["end"] and word["confidence"] == 1.0 for word in body["words"])

    @pytest.mark.parametrize("name", [None, "", "whisper-1", "first"])
    def test_the_default_model(self, client: TestClient, name: str | None) -> None:
        fields = {} if name is None else {"model": name}
        assert post(client, response_format="verbose_json", **fields).json()["language"] == "english"

    def test_a_model_is_chosen_by_name(self, client: TestClient) -> None:
        assert post(client, model="second", response_format="verbose_json").json()["language"] == "german"

    def test_segments_have_words_in_whispers_form(self, client: TestClient) -> None:
        body = post(client, response_format="verbose_json", **{"timestamp_granularities[]": "word"}).json()
        nested = [word for segment in body["segments"] for word in segment["words"]]
        assert [word["word"] for word in nested] == [word["word"] for word in body["words"]]
        assert all(set(word) == {"word", "start", "end", "probability"} for word in nested)

    @pytest.mark.parametrize("response_format", ["json", "verbose_json", None])
    def test_logprobs(self, client: TestClient, response_format: str | None) -> None:
        fields = {"include[]": "logprobs"} | ({"response_format": response_format} if response_format else {})
        body = post(client, **fields).json()
        assert "".join(entry["token"] for entry in body["logprobs"]).strip() == body["text"]
        for entry in body["logprobs"]:
            Logprob.model_validate(entry)
            assert bytes(entry["bytes"]).decode() == entry["token"]
            assert entry["logprob"] == 0

    def test_an_unknown_value_of_include(self, client: TestClient) -> None:
        assert_error(post(client, **{"include[]": "secrets"}), 400, "invalid_value", "include[]")

    def test_diarization_is_not_supported(self, client: TestClient) -> None:
        message = assert_error(post(client, response_format="diarized_json"), 400, "invalid_request", "response_format")
        assert "speakers" in message

    def test_unknown_fields_are_ignored(self, client: TestClient) -> None:
        assert post(client, temperature="0", prompt="x", made_up="1").status_code == 200

    def test_the_first_window_has_priority(self, client: TestClient, server: FakeService) -> None:
        post(client, media.wav(media.tone(50, rate=8000), rate=8000))
        assert server.lanes == [Lane.INTERACTIVE, Lane.BULK]

    @pytest.mark.parametrize("fields", [{"language": "en"}, {"language": "en-US"}, {"language": "English"}, {"language": ""}])
    def test_a_supported_language(self, client: TestClient, fields: dict[str, str]) -> None:
        assert post(client, **fields).json()["language"] == "en"

    def test_one_of_several_languages(self, client: TestClient) -> None:
        fields = {"languages[]": ["fr", "de"], "model": "second", "response_format": "verbose_json"}
        assert post(client, **fields).json()["language"] == "german"

    @pytest.mark.parametrize("fields", [{"language": "fr"}, {"language": "klingon"}, {"languages[]": ["de", "fr"]}])
    def test_an_unsupported_language(self, client: TestClient, fields: dict[str, str]) -> None:
        assert "Supported languages: en." in assert_error(post(client, **fields), 400, "invalid_request", "language")

    def test_translation_is_transcription_for_an_english_model_and_rejected_for_others(self, client: TestClient) -> None:
        files = {"file": ("x.wav", NOISE)}
        english = client.post("/v1/audio/translations", files=files)
        assert english.json() == post(client, response_format="json").json()
        srt = client.post("/v1/audio/translations", files=files, data={"response_format": "srt"})
        assert srt.text == post(client, response_format="srt").text
        german = client.post("/v1/audio/translations", files=files, data={"model": "second"})
        assert "does not translate" in assert_error(german, 400, "invalid_request", "model")

    def test_only_the_first_window_of_silence_goes_to_the_model(self, client: TestClient, server: FakeService) -> None:
        """An unavailable model is reported all the same, and hours of silence cost nothing."""
        silence = media.wav(np.zeros(100 * 8_000), 8_000, "PCM_U8")
        assert post(client, silence).json()["text"] == ""
        assert [window.index for window in server.windows] == [0]
        server.failure = ModelUnavailable("no file", param="model")
        assert_error(post(client, silence), 503, "model_unavailable", "model")

    def test_five_seconds_of_silence(self, client: TestClient) -> None:
        body = post(client, media.wav(np.zeros(80_000)), response_format="json").json()
        assert body == {"text": "", "usage": {"type": "duration", "seconds": 5.0}}
        assert post(client, media.wav(np.zeros(80_000))).json()["segments"] == []


class TestBadInput:
    def test_no_file(self, client: TestClient) -> None:
        response = client.post("/v1/audio/transcriptions", data={"model": "first"})
        assert "file" in assert_error(response, 400, "missing_required_parameter", "file")

    def test_no_form_at_all(self, client: TestClient) -> None:
        assert_error(client.post("/v1/audio/transcriptions", content=b"x"), 400, "missing_required_parameter", "file")

    def test_a_file_that_is_a_text_field(self, client: TestClient) -> None:
        assert_error(client.post("/v1/audio/transcriptions", data={"file": "x"}), 400, "invalid_value", "file")

    @pytest.mark.parametrize("content_type", ["multipart/form-data", "multipart/form-data; boundary=x"])
    def test_a_broken_form(self, client: TestClient, content_type: str) -> None:
        response = client.post("/v1/audio/transcriptions", content=b"nonsense", headers={"content-type": content_type})
        assert response.status_code == 400
        assert set(response.json()) == {"error"}

    @pytest.mark.parametrize(
        "data", [b"", b"no media", media.silent_video(), media.wav(np.zeros(0))], ids=["empty", "text", "no sound", "no samples"]
    )
    def test_files_without_audio(self, client: TestClient, data: bytes) -> None:
        assert_error(post(client, data), 400, "invalid_audio", "file")

    def test_an_unknown_format(self, client: TestClient) -> None:
        message = assert_error(post(client, response_format="docx"), 400, "invalid_value", "response_format")
        assert "verbose_json" in message

    def test_an_unknown_granularity(self, client: TestClient) -> None:
        response = post(client, **{"timestamp_granularities[]": "letter"})
        assert_error(response, 400, "invalid_value", "timestamp_granularities[]")

    def test_an_unknown_model(self, client: TestClient) -> None:
        message = assert_error(post(client, model="nope"), 404, "model_not_found", "model")
        assert "nope" in message
        assert "first, second" in message

    def test_an_upload_that_is_too_large(self, client: TestClient) -> None:
        assert "1 MB" in assert_error(post(client, bytes(1_100_000)), 413, "upload_too_large", "file")

    def test_an_upload_of_unknown_length_that_is_too_large(self, client: TestClient) -> None:
        def parts() -> Iterator[bytes]:
            yield b'--x\r\nContent-Disposition: form-data; name="file"; filename="x.wav"\r\n\r\n'
            yield from [bytes(100_000)] * 11
            yield b"\r\n--x--\r\n"

        headers = {"content-type": "multipart/form-data; boundary=x"}
        response = client.post("/v1/audio/transcriptions", content=parts(), headers=headers)
        assert_error(response, 413, "upload_too_large", "file")

    def test_an_unknown_route(self, client: TestClient) -> None:
        assert_error(client.get("/v1/nothing"), 404, "invalid_request")

    def test_a_wrong_method(self, client: TestClient) -> None:
        assert_error(client.get("/v1/audio/transcriptions"), 405, "invalid_request")

    @pytest.mark.parametrize(
        "data",
        [
            media.wav(np.array([0.1])),
            media.wav(np.full(16_000, np.nan, np.float32), subtype="FLOAT"),
            media.wav(np.random.default_rng(0).normal(0, 0.1, (192_000, 2)), 192_000),
        ],
        ids=["one sample", "not numbers", "192 kHz"],
    )
    def test_unusual_but_valid_audio(self, client: TestClient, data: bytes) -> None:
        assert post(client, data).status_code == 200

    def test_the_next_request_is_served(self, client: TestClient) -> None:
        post(client, b"no media")
        assert post(client).status_code == 200


class TestFailures:
    @pytest.mark.parametrize(
        ("failure", "status", "retry_after"),
        [(ModelUnavailable("no hub"), 503, "10"), (Overloaded("full"), 429, "5"), (EngineError("broken"), 500, None)],
    )
    def test_each_has_its_status(
        self, client: TestClient, server: FakeService, failure: SpeechError, status: int, retry_after: str | None
    ) -> None:
        server.failure = failure
        response = post(client)
        assert assert_error(response, status, failure.code) == failure.message
        assert response.headers.get("retry-after") == retry_after

    def test_an_unexpected_failure_reveals_no_details(self, client: TestClient, server: FakeService) -> None:
        server.failure = RuntimeError("secret detail")
        assert "secret" not in assert_error(post(client), 500, "server_error")


def test_a_damaged_file_has_a_warning(client: TestClient) -> None:
    data = bytearray(media.encode(media.tone(20, 48_000), 48_000, "mp4", "aac"))
    middle = len(data) // 2
    data[middle : middle + 3000] = np.random.default_rng(0).integers(0, 256, 3000, dtype=np.uint8).tobytes()
    body = post(client, bytes(data), response_format="verbose_json").json()
    assert body["warnings"] == ["Parts of the file could not be decoded and were skipped."]
