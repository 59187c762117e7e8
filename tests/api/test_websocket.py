"""Seed A's WebSocket protocol on the bundled model: live speech, files, and errors."""

import asyncio
import base64
import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
import websockets
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from pydantic import SecretStr
from starlette.testclient import WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from serve_app.api import create_api, realtime
from serve_app.api.websocket import PATH
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.errors import EngineError, ModelUnavailable
from serve_app.settings import AuthSettings, LimitSettings, LiveSettings
from serve_app.window import SAMPLE_RATE, Lane, Samples
from testing import media
from testing.digit_strings import DigitString
from testing.fake_service import EngineService, serving
from testing.server import open_files

RAW = {"encoding": "pcm_s16le"}
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


@pytest.fixture
def server(engine: ParakeetEngine) -> EngineService:
    return EngineService(engine)


@pytest.fixture
def client(server: EngineService) -> Iterator[TestClient]:
    with TestClient(create_api(server.service), raise_server_exceptions=False) as client:
        yield client


@pytest.fixture(scope="module")
def text(spoken: list[DigitString]) -> str:
    return " ".join(string.text for string in spoken)


def pieces(data: bytes, size: int = 3_200) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def as_floats(samples: Samples) -> NDArray[np.float32]:
    return (samples / 32768).astype(np.float32)


def until_end(socket: WebSocketTestSession) -> list[dict[str, Any]]:
    """All messages up to the last one."""
    messages: list[dict[str, Any]] = []
    while not messages or messages[-1]["type"] not in ("final_transcription", "error"):
        messages.append(socket.receive_json())
    return messages


def transcribed(client: TestClient, data: bytes, config: dict[str, Any] | None, size: int = 3_200) -> list[dict[str, Any]]:
    """All messages for audio sent in frames of `size` bytes."""
    with client.websocket_connect(PATH) as socket:
        if config is not None:
            socket.send_json(config)
        for piece in pieces(data, size):
            socket.send_bytes(piece)
        socket.send_text("END")
        messages = until_end(socket)
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
        assert closed.value.code == 1000, messages[-1]
    return messages


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
        wait_for(lambda: server.service.admission.streams == 0)

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


def failure(client: TestClient, frames: list[Any], code: int) -> dict[str, Any]:
    """The error that the frames cause; asserts the close code."""
    with client.websocket_connect(PATH) as socket:
        for frame in frames:
            if isinstance(frame, bytes):
                socket.send_bytes(frame)
            else:
                socket.send_text(frame if isinstance(frame, str) else json.dumps(frame))
        error = until_end(socket)[-1]
        assert set(error) == {"type", "error", "code", "param"}
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
        assert closed.value.code == code
    return error


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


class TestErrors:
    @pytest.mark.parametrize(
        ("frames", "code", "param"),
        [
            (["{"], 1007, None),
            ([{"channels": "many"}], 1007, "channels"),
            (["{" * 100_000], 1007, None),
            (["hello"], 1007, None),
            ([{"format": "base64"}, "***"], 1007, None),
            ([{"sample_rate": 1}, bytes(64)], 1003, "sample_rate"),
            ([{"bytes_per_sample": 3}, bytes(64)], 1003, "bytes_per_sample"),
            ([{"model": "none"}], 1008, "model"),
            ([{"language": "fr"}], 1007, "language"),
            ([{"keywords": list(map(str, range(200)))}], 1007, "keywords[]"),
            (["END"], 1003, "file"),
            ([RAW, b"", "END"], 1003, "file"),
        ],
        ids=str,
    )
    def test_invalid_messages(
        self, client: TestClient, server: EngineService, frames: list[Any], code: int, param: str | None
    ) -> None:
        assert failure(client, frames, code)["param"] == param
        wait_for(lambda: server.service.admission.streams == 0)

    @pytest.mark.parametrize(
        ("error", "code", "message"),
        [
            (EngineError("broken"), 1011, "broken"),
            (ModelUnavailable("no file"), 1013, "no file"),
            (KeyError("secret"), 1011, "Internal error: the details are in the server's log."),
        ],
    )
    def test_a_model_that_fails(
        self, client: TestClient, server: EngineService, speech: Samples, error: Exception, code: int, message: str
    ) -> None:
        server.failure = error
        assert failure(client, [RAW, speech.tobytes(), "END"], code)["error"] == message
        wait_for(lambda: server.service.admission.streams == 0)

    def test_limits(self, engine: ParakeetEngine) -> None:
        live = LiveSettings(idle_s=0.2, config_s=0.2, max_frame_bytes=1_024, max_streams=1)
        server = EngineService(engine, live=live)
        with TestClient(create_api(server.service)) as client:
            assert failure(client, [], 1008)["code"] == "stream_idle"
            assert failure(client, [RAW, bytes(2)], 1008)["code"] == "stream_idle"
            assert failure(client, [bytes(1_025)], 1009)["code"] == "upload_too_large"
            with client.websocket_connect(PATH) as first:
                first.send_json(RAW)
                wait_for(lambda: server.service.admission.streams == 1)
                assert failure(client, [RAW, bytes(2)], 1013)["code"] == "overloaded"

    def test_the_maximum_duration_of_a_session(self, engine: ParakeetEngine) -> None:
        server = EngineService(engine, live=LiveSettings(max_session_s=0.3))
        with TestClient(create_api(server.service)) as client:
            assert failure(client, [RAW, bytes(2)], 1008)["code"] == "stream_too_long"


class TestKeys:
    @pytest.fixture
    def client(self, engine: ParakeetEngine) -> Iterator[TestClient]:
        server = EngineService(engine, auth=AuthSettings(keys=(SecretStr("secret"),)))
        with TestClient(create_api(server.service)) as client:
            yield client

    @pytest.mark.parametrize("config", [{}, {"api_key": "wrong"}])
    def test_no_key_and_a_wrong_one(self, client: TestClient, config: dict[str, str]) -> None:
        assert failure(client, [{**RAW, **config}, bytes(2), "END"], 1008)["code"] == "invalid_api_key"

    def test_in_the_configuration(self, client: TestClient) -> None:
        assert transcribed(client, bytes(32_000), {**RAW, "api_key": "secret"})[-1]["text"] == ""

    def test_as_a_header(self, client: TestClient) -> None:
        with client.websocket_connect(PATH, headers={"Authorization": "Bearer secret"}) as socket:
            socket.send_json(RAW)
            socket.send_bytes(bytes(32_000))
            socket.send_text("END")
            assert until_end(socket)[-1]["type"] == "final_transcription"


def test_the_stream_ends_when_the_client_disconnects(client: TestClient, server: EngineService, speech: Samples) -> None:
    for data, config in ((speech.tobytes(), RAW), (media.wav(speech), {})):
        server.hold.clear()
        with client.websocket_connect(PATH) as socket:
            socket.send_json(config)
            socket.send_bytes(data)
            wait_for(lambda: server.service.admission.streams == 1)
        wait_for(lambda: server.service.admission.streams == 0)
        server.hold.set()


def test_a_server_that_shuts_down_transcribes_what_it_has_read(
    client: TestClient, server: EngineService, speech: Samples, text: str
) -> None:
    with client.websocket_connect(PATH) as socket:
        socket.send_json(RAW)
        socket.send_bytes(speech.tobytes())
        first = socket.receive_json()
        assert first["type"] == "segment"
        server.service.admission.close()
        assert until_end(socket)[-1]["text"] == text
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
        assert closed.value.code == 1012
    assert failure(client, [RAW, bytes(2), "END"], 1012)["code"] == "shutting_down"


async def test_broken_connections_leave_no_task_file_or_stream(server: EngineService, speech: Samples) -> None:
    with serving(create_api(server.service)) as url:
        address = url.replace("http", "ws")
        httpx2.get(f"{url}/ready")

        def open_resources() -> tuple[int, int, set[str]]:
            assert server.loop is not None
            return len(asyncio.all_tasks(server.loop)), server.service.admission.streams, open_files(psutil.Process())

        before = open_resources()
        append = json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(speech.tobytes()).decode()})
        broken: list[tuple[str, list[str | bytes]]] = [
            (PATH, []),
            (PATH, [json.dumps(RAW)]),
            (PATH, [json.dumps({**RAW, "interim_results": True}), speech.tobytes()]),
            (PATH, [media.wav(speech)[:100_000]]),
            (PATH, [media.make("m4a", as_floats(speech))[:10_000]]),
            (PATH, ["{"]),
            (PATH, [json.dumps({**RAW, "format": "base64"}), "%%%"]),
            (PATH, [bytes(9_000_000)]),
            (realtime.PATH, []),
            (realtime.PATH, [append]),
            (realtime.PATH, [append, json.dumps({"type": "input_audio_buffer.commit"}), append]),
            (realtime.PATH, ["garbage", "[]"]),
            (realtime.PATH, [bytes(9_000_000)]),
        ]
        for path, frames in broken * 2:
            async with websockets.connect(address + path) as socket:
                for frame in frames:
                    await socket.send(frame)
                await asyncio.sleep(0.1)
                socket.transport.abort()
        await asyncio.to_thread(wait_for, lambda: open_resources() == before)
