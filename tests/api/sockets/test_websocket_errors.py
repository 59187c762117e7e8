"""Seed A's WebSocket protocol: errors, keys, disconnects and shutdown."""

import asyncio
import base64
import json
from collections.abc import Iterator
from concurrent.futures import CancelledError as FutureCancelled
from contextlib import suppress
from typing import Any

import httpx2
import psutil
import pytest
import websockets
from fastapi.testclient import TestClient
from pydantic import SecretStr
from starlette.websockets import WebSocketDisconnect

from serve_app.api import create_api, realtime
from serve_app.api.websocket import PATH
from serve_app.cluster.status import ReplicaStatus
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.errors import EngineError, ModelUnavailable
from serve_app.settings import AuthSettings, LiveSettings
from serve_app.window import Samples
from testing import media
from testing.fake_service import EngineService, serving
from testing.seed_socket_client import RAW, as_floats, failure, transcribed, until_end, wait_for
from testing.server import open_files


class TestErrors:
    @pytest.mark.parametrize(
        ("frames", "code", "param"),
        [
            (["{"], 1007, None),
            ([{"channels": "many"}], 1007, "channels"),
            (["{" * 100_000], 1007, None),
            (["hello"], 1007, None),
            ([{"format": "base64"}, "***"], 1007, None),
            ([{"sample_rate": 1}, bytes(4_096)], 1003, "sample_rate"),
            ([{"bytes_per_sample": 3}, bytes(4_096)], 1003, "bytes_per_sample"),
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
        wait_for(lambda: server.service.admission.streams.taken == 0)

    def test_keywords_that_the_model_does_not_take(self, client: TestClient, server: EngineService) -> None:
        server.replicas["first"] = (ReplicaStatus("a", "ready", takes_keywords=False),)
        error = failure(client, [{**RAW, "keywords": ["Bob"]}], 1007)
        assert (error["code"], error["param"]) == ("invalid_request", "keywords[]")
        assert transcribed(client, bytes(32_000), RAW)[-1]["text"] == ""

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
        wait_for(lambda: server.service.admission.streams.taken == 0)

    def test_limits(self, engine: ParakeetEngine) -> None:
        live = LiveSettings(idle_s=0.2, config_s=0.2, max_frame_bytes=1_024, max_streams=1)
        server = EngineService(engine, live=live)
        with TestClient(create_api(server.service)) as client:
            assert failure(client, [], 1008)["code"] == "stream_idle"
            assert failure(client, [RAW, bytes(2)], 1008)["code"] == "stream_idle"
            assert failure(client, [bytes(1_025)], 1009)["code"] == "upload_too_large"
            with client.websocket_connect(PATH) as first:
                first.send_json(RAW)
                first.send_bytes(bytes(2))
                wait_for(lambda: server.service.admission.streams.taken == 1)
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
        # The end of the block cancels the application, as Serve does; it may raise that.
        with suppress(asyncio.CancelledError, FutureCancelled), client.websocket_connect(PATH) as socket:
            socket.send_json(config)
            socket.send_bytes(data)
            wait_for(lambda: server.service.admission.streams.taken == 1)
        wait_for(lambda: server.service.admission.streams.taken == 0)
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
            return len(asyncio.all_tasks(server.loop)), server.service.admission.streams.taken, open_files(psutil.Process())

        # The task of that request may end after its answer.
        await asyncio.to_thread(wait_for, lambda: open_resources()[0] == 1)
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
