"""Seed A's WebSocket protocol on the bundled model: live speech and files."""

import base64
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from serve_app.api import create_api
from serve_app.api.websocket import PATH
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.settings import LimitSettings, LiveSettings
from serve_app.window import SAMPLE_RATE, Lane, Samples
from testing import media
from testing.fake_service import EngineService
from testing.seed_socket_client import RAW, as_floats, failure, pieces, transcribed, until_end, wait_for

FORMS = [
    (8_000, "mulaw", 1, 777),
    (8_000, "pcm_s16le", 1, 160),
    (16_000, "alaw", 2, 32_001),
    (24_000, "pcm_s16le", 2, 99_999),
    (44_100, "pcm_f32le", 1, 4_001),
    (48_000, "pcm_f32le", 2, 3_840),
]
"""Rate, encoding, channels, and bytes per frame: 10 ms to more than a second, and some that split a sample."""

CONTAINERS = [("wav", "pcm_s16le"), ("mp3", "libmp3lame"), ("webm", "libopus")]


class TestLive:
    def test_segments_and_the_final_transcription(self, client: TestClient, speech: Samples, text: str) -> None:
        *segments, last = transcribed(client, speech.tobytes(), RAW)
        assert last["type"] == "final_transcription"
        assert last["text"] == text
        assert [segment["type"] for segment in segments] == ["segment"] * last["total_segments"]
        assert " ".join(segment["text"] for segment in segments) == text
        assert [segment["id"] for segment in segments] == list(range(len(segments)))
        assert last["final_duration_processed_seconds"] == pytest.approx(len(speech) / SAMPLE_RATE, abs=0.01)
        assert last["csv_content"].count("\r\n") == len(segments) + 1
        assert "-->" in last["srt_content"]
        assert last["language"] == "en"

    def test_partial_words_are_revised_and_final_ones_are_not(self, client: TestClient, speech: Samples, text: str) -> None:
        *messages, last = transcribed(client, speech.tobytes(), {**RAW, "interim_results": True})
        said: list[str] = []
        seen: list[str] = []
        for message in messages:
            if message["type"] == "segment":
                said += message["text"].split()
                assert seen[: len(said)] == said[: len(seen)]
                continue
            words = [word["word"] for word in message["words"]]
            final = said + [word["word"] for word in message["words"] if word["is_final"]]
            assert final[: len(seen)] == seen[: len(final)]
            seen = max(seen, final, key=len)
            assert message["text"] == " ".join(words)
        assert " ".join(said) == last["text"] == text
        assert any(not word["is_final"] for message in messages for word in message.get("words", []) if "is_final" in word)

    @pytest.mark.parametrize(("rate_hz", "encoding", "channels", "size"), FORMS)
    def test_every_form_gives_the_same_words(
        self, client: TestClient, speech: Samples, text: str, rate_hz: int, encoding: Any, channels: int, size: int
    ) -> None:
        import soxr

        samples = soxr.resample(as_floats(speech), SAMPLE_RATE, rate_hz)
        config = {"encoding": encoding, "sample_rate": rate_hz, "channels": channels}
        messages = transcribed(client, media.pcm(samples, encoding, channels), config, size)
        assert messages[-1]["text"] == text

    def test_seed_as_configuration_and_none(self, client: TestClient, speech: Samples, text: str) -> None:
        config = {"sample_rate": 16_000, "channels": 1, "bytes_per_sample": 2, "format": "binary"}
        assert transcribed(client, speech.tobytes(), config)[-1]["text"] == text
        assert transcribed(client, speech.tobytes(), None)[-1]["text"] == text

    def test_base64(self, client: TestClient, speech: Samples, text: str) -> None:
        with client.websocket_connect(PATH) as socket:
            socket.send_json({**RAW, "format": "base64"})
            for piece in pieces(speech.tobytes(), 30_001):
                socket.send_text(base64.b64encode(piece).decode())
            socket.send_text(" end ")
            assert until_end(socket)[-1]["text"] == text

    def test_endpointing(self, client: TestClient, speech: Samples, text: str) -> None:
        for endpointing in (False, 300, True):
            *segments, last = transcribed(client, speech.tobytes(), {**RAW, "endpointing": endpointing})
            assert last["text"].lower().replace(".", "") == text.lower().replace(".", "")
            assert segments

    def test_live_speech_uses_the_live_lane(self, client: TestClient, server: EngineService, speech: Samples) -> None:
        transcribed(client, speech.tobytes(), {**RAW, "keywords": ["Nine nine"]})
        assert set(server.lanes) == {Lane.LIVE}
        assert {job.keywords for job in server.jobs} == {("Nine nine",)}


class TestFiles:
    @pytest.mark.parametrize(("container", "codec"), [*CONTAINERS, ("mp4", "aac")])
    def test_segments_are_the_same_as_over_rest(self, client: TestClient, speech: Samples, container: str, codec: str) -> None:
        data = media.encode(as_floats(speech), SAMPLE_RATE, container, codec)
        *segments, last = transcribed(client, data, {"sample_rate": 16_000, "channels": 1, "format": "binary"})
        answer = client.post("/v1/audio/transcriptions", files={"file": ("x", data)}).json()
        assert last["text"] == answer["text"]
        assert last["csv_content"] == answer["csv_content"]
        assert last["srt_content"] == answer["srt_content"]
        # Confidences may differ a little: without a known end of the file, its last samples are transcribed too.
        same = ("id", "text", "start", "end", "seek", "tokens")
        assert [[segment[name] for name in same] for segment in segments] == [
            [segment[name] for name in same] for segment in answer["segments"]
        ]
        assert {frozenset(segment) for segment in segments} == {frozenset({"type", *answer["segments"][0]})}

    @pytest.mark.parametrize(("container", "codec"), CONTAINERS)
    def test_the_first_segment_comes_before_the_upload_has_ended(
        self, client: TestClient, speech: Samples, container: str, codec: str
    ) -> None:
        long = np.concatenate([speech] * 4)
        data = media.encode(as_floats(long), SAMPLE_RATE, container, codec)
        middle = 3 * len(data) // 4
        with client.websocket_connect(PATH) as socket:
            for piece in pieces(data[:middle], 20_000):
                socket.send_bytes(piece)
            first = socket.receive_json()
            assert (first["type"], first["id"]) == ("segment", 0)
            for piece in pieces(data[middle:], 20_000):
                socket.send_bytes(piece)
            socket.send_text("END")
            assert until_end(socket)[-1]["type"] == "final_transcription"

    def test_an_upload_that_stops_in_the_middle_is_an_error(self, engine: ParakeetEngine, speech: Samples) -> None:
        server = EngineService(engine, live=LiveSettings(idle_s=0.3))
        with TestClient(create_api(server.service)) as client, client.websocket_connect(PATH) as socket:
            socket.send_bytes(media.wav(speech)[:100_000])
            assert until_end(socket)[-1]["code"] == "stream_idle"
        wait_for(lambda: server.service.admission.streams.taken == 0)

    def test_bytes_after_the_end_of_the_file_are_ignored(self, client: TestClient, speech: Samples, text: str) -> None:
        """The header of the file gives its length."""
        with client.websocket_connect(PATH) as socket:
            for piece in pieces(media.encode(as_floats(speech), SAMPLE_RATE, "webm", "libopus") + bytes(3_000_000), 100_000):
                socket.send_bytes(piece)
            socket.send_text("END")
            assert until_end(socket)[-1]["text"] == text

    def test_an_upload_that_is_too_large(self, engine: ParakeetEngine) -> None:
        server = EngineService(engine, limits=LimitSettings(max_upload_bytes=100_000))
        frames = [b"\0\0\0\x20ftypM4A " + bytes(50_000), bytes(50_000), "END"]
        with TestClient(create_api(server.service)) as client:
            assert failure(client, frames, 1009)["code"] == "upload_too_large"

    def test_a_broken_file(self, client: TestClient) -> None:
        error = failure(client, [b"fLaC" + bytes(10_000), "END"], 1003)
        assert error["code"] == "invalid_audio"
