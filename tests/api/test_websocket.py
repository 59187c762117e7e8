"""Seed A's WebSocket: live speech and files by the bundled model, and what it says to those who do it wrong."""

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
from tests.audio.test_pcm import encoded

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
    """Every message up to the last, and the close that follows it."""
    messages: list[dict[str, Any]] = []
    while not messages or messages[-1]["type"] not in ("final_transcription", "error"):
        messages.append(socket.receive_json())
    return messages


def heard(client: TestClient, data: bytes, config: dict[str, Any] | None, size: int = 3_200) -> list[dict[str, Any]]:
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
    def test_the_text_and_what_comes_with_it(self, client: TestClient, speech: Samples, text: str) -> None:
        *segments, last = heard(client, speech.tobytes(), RAW)
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
        *messages, last = heard(client, speech.tobytes(), {**RAW, "interim_results": True})
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
        messages = heard(client, encoded(samples, encoding, channels), config, size)
        assert messages[-1]["text"] == text

    def test_seed_as_way_to_say_it_and_none_at_all(self, client: TestClient, speech: Samples, text: str) -> None:
        config = {"sample_rate": 16_000, "channels": 1, "bytes_per_sample": 2, "format": "binary"}
        assert heard(client, speech.tobytes(), config)[-1]["text"] == text
        assert heard(client, speech.tobytes(), None)[-1]["text"] == text

    def test_base64(self, client: TestClient, speech: Samples, text: str) -> None:
        with client.websocket_connect(PATH) as socket:
            socket.send_json({**RAW, "format": "base64"})
            for piece in pieces(speech.tobytes(), 30_001):
                socket.send_text(base64.b64encode(piece).decode())
            socket.send_text(" end ")
            assert until_end(socket)[-1]["text"] == text

    def test_utterances_end_with_a_silence_of_ones_choice(self, client: TestClient, speech: Samples, text: str) -> None:
        for endpointing in (False, 300, True):
            *segments, last = heard(client, speech.tobytes(), {**RAW, "endpointing": endpointing})
            assert last["text"].lower().replace(".", "") == text.lower().replace(".", "")
            assert segments

    def test_live_speech_goes_before_all_else(self, client: TestClient, server: EngineService, speech: Samples) -> None:
        heard(client, speech.tobytes(), {**RAW, "keywords": ["Nine nine"]})
        assert set(server.lanes) == {Lane.LIVE}
        assert {job.keywords for job in server.jobs} == {("Nine nine",)}


class TestFiles:
    @pytest.mark.parametrize(("container", "codec"), [*CONTAINERS, ("mp4", "aac")])
    def test_segments_are_those_of_rest(self, client: TestClient, speech: Samples, container: str, codec: str) -> None:
        data = media.encode(as_floats(speech), SAMPLE_RATE, container, codec)
        *segments, last = heard(client, data, {"sample_rate": 16_000, "channels": 1, "format": "binary"})
        answer = client.post("/v1/audio/transcriptions", files={"file": ("x", data)}).json()
        assert last["text"] == answer["text"]
        assert last["csv_content"] == answer["csv_content"]
        assert last["srt_content"] == answer["srt_content"]
        # Confidences may differ a little: where a file's end is not known, its last samples are heard too.
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

    def test_a_sender_that_stops_half_way_has_sent_no_file(self, engine: ParakeetEngine, speech: Samples) -> None:
        server = EngineService(engine, live=LiveSettings(idle_s=0.3))
        with TestClient(create_api(server.service)) as client, client.websocket_connect(PATH) as socket:
            socket.send_bytes(media.wav(speech)[:100_000])
            assert until_end(socket)[-1]["code"] == "stream_idle"
        wait_for(lambda: server.service.admission.streams == 0)

    def test_more_than_the_file_holds_is_not_waited_for(self, client: TestClient, speech: Samples, text: str) -> None:
        """The header tells the length, and what follows is no part of the file."""
        with client.websocket_connect(PATH) as socket:
            for piece in pieces(media.encode(as_floats(speech), SAMPLE_RATE, "webm", "libopus") + bytes(3_000_000), 100_000):
                socket.send_bytes(piece)
            socket.send_text("END")
            assert until_end(socket)[-1]["text"] == text

    def test_no_more_bytes_than_an_upload_may_have(self, engine: ParakeetEngine) -> None:
        server = EngineService(engine, limits=LimitSettings(max_upload_bytes=100_000))
        frames = [b"\0\0\0\x20ftypM4A " + bytes(50_000), bytes(50_000), "END"]
        with TestClient(create_api(server.service)) as client:
            assert failure(client, frames, 1009)["code"] == "upload_too_large"

    def test_a_broken_file(self, client: TestClient) -> None:
        error = failure(client, [b"fLaC" + bytes(10_000), "END"], 1003)
        assert error["code"] == "invalid_audio"


def failure(client: TestClient, frames: list[Any], code: int) -> dict[str, Any]:
    """The error that frames lead to; the connection is closed with that code."""
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
    until = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < until
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
    def test_what_is_wrong(
        self, client: TestClient, server: EngineService, frames: list[Any], code: int, param: str | None
    ) -> None:
        assert failure(client, frames, code)["param"] == param
        wait_for(lambda: server.service.admission.streams == 0)

    @pytest.mark.parametrize(
        ("error", "code", "said"),
        [
            (EngineError("broken"), 1011, "broken"),
            (ModelUnavailable("no file"), 1013, "no file"),
            (KeyError("secret"), 1011, "The server failed; its log says how."),
        ],
    )
    def test_a_model_that_fails(
        self, client: TestClient, server: EngineService, speech: Samples, error: Exception, code: int, said: str
    ) -> None:
        server.failure = error
        assert failure(client, [RAW, speech.tobytes(), "END"], code)["error"] == said
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

    def test_the_longest_session(self, engine: ParakeetEngine) -> None:
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
    def test_none_or_a_wrong_one(self, client: TestClient, config: dict[str, str]) -> None:
        assert failure(client, [{**RAW, **config}, bytes(2), "END"], 1008)["code"] == "invalid_api_key"

    def test_in_the_configuration(self, client: TestClient) -> None:
        assert heard(client, bytes(32_000), {**RAW, "api_key": "secret"})[-1]["text"] == ""

    def test_as_a_header(self, client: TestClient) -> None:
        with client.websocket_connect(PATH, headers={"Authorization": "Bearer secret"}) as socket:
            socket.send_json(RAW)
            socket.send_bytes(bytes(32_000))
            socket.send_text("END")
            assert until_end(socket)[-1]["type"] == "final_transcription"


def test_a_client_that_goes_leaves_nothing(client: TestClient, server: EngineService, speech: Samples) -> None:
    for data, config in ((speech.tobytes(), RAW), (media.wav(speech), {})):
        server.hold.clear()
        with client.websocket_connect(PATH) as socket:
            socket.send_json(config)
            socket.send_bytes(data)
            wait_for(lambda: server.service.admission.streams == 1)
        wait_for(lambda: server.service.admission.streams == 0)
        server.hold.set()


def test_a_server_that_ends_finishes_what_it_has(client: TestClient, server: EngineService, speech: Samples, text: str) -> None:
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


async def test_no_task_file_or_stream_is_left(server: EngineService, speech: Samples) -> None:
    with serving(create_api(server.service)) as url:
        address = url.replace("http", "ws")
        httpx2.get(f"{url}/ready")

        def left() -> tuple[int, int, set[str]]:
            assert server.loop is not None
            return len(asyncio.all_tasks(server.loop)), server.service.admission.streams, open_files(psutil.Process())

        before = left()
        append = json.dumps({"type": "input_audio_buffer.append", "audio": base64.b64encode(speech.tobytes()).decode()})
        cut_off: list[tuple[str, list[str | bytes]]] = [
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
        for path, frames in cut_off * 2:
            async with websockets.connect(address + path) as socket:
                for frame in frames:
                    await socket.send(frame)
                await asyncio.sleep(0.1)
                socket.transport.abort()
        await asyncio.to_thread(wait_for, lambda: left() == before)
