"""The span of a request, and the line in the log of one whose client left."""

import asyncio
import logging
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from opentelemetry.trace import StatusCode

from serve_app.api import create_api, realtime, websocket
from serve_app.errors import EngineError
from testing import media
from testing.fake_service import NOISE, FakeService, post
from testing.open_requests import OpenRequest, until
from testing.traces import TRACE_ID, TRACEPARENT, MemoryTracer, attributes, is_within

ROUTE = "POST /v1/audio/transcriptions"


@pytest.fixture
def tracer(server: FakeService) -> MemoryTracer:
    server.service.tracer = tracer = MemoryTracer()
    return tracer


@pytest.fixture
def client(server: FakeService, tracer: MemoryTracer) -> TestClient:
    return TestClient(create_api(server.service), raise_server_exceptions=False)


def test_a_file(client: TestClient, tracer: MemoryTracer) -> None:
    client.headers = {"x-request-id": "one-of-mine", "traceparent": TRACEPARENT}
    assert post(client).status_code == 200
    request, upload, decode, merge, render = (tracer.only(name) for name in (ROUTE, "upload", "decode", "merge", "render"))
    assert f"{request.context.trace_id:032x}" == TRACE_ID
    assert attributes(request) | {"audio_s": 3.0} == {
        "http.request.method": "POST",
        "http.route": "/v1/audio/transcriptions",
        "http.response.status_code": 200,
        "request.id": "one-of-mine",
        "model": "first",
        "entry_point": "rest",
        "audio_s": 3.0,
        "windows": 1,
    }
    stages = [upload, decode, merge, render]
    assert all(is_within(stage, request) for stage in stages)
    assert [stage.start_time for stage in stages] == sorted(stage.start_time or 0 for stage in stages)
    assert attributes(upload)["bytes"] > len(NOISE)


def test_a_stream_of_events(client: TestClient, tracer: MemoryTracer) -> None:
    assert post(client, stream="true").status_code == 200
    assert all(is_within(tracer.only(name), tracer.only(ROUTE)) for name in ("upload", "decode", "merge", "render"))


@pytest.mark.parametrize(("failure", "status"), [(None, 400), (EngineError("it broke"), 500)])
def test_failures(
    server: FakeService, client: TestClient, tracer: MemoryTracer, failure: EngineError | None, status: int
) -> None:
    """Only those of the server count as such."""
    server.failure = failure
    assert post(client, NOISE if failure else b"no media").status_code == status
    request = tracer.only(ROUTE)
    assert attributes(request)["http.response.status_code"] == status
    assert (request.status.status_code == StatusCode.ERROR) == (status == 500)


def test_other_routes(client: TestClient, tracer: MemoryTracer) -> None:
    client.get("/v1/models")
    client.get("/nothing/here")
    assert tracer.names() == ["GET /v1/models", "GET other"]


def test_one_that_is_not_sampled_leaves_nothing(client: TestClient, tracer: MemoryTracer) -> None:
    client.headers = {"traceparent": TRACEPARENT[:-1] + "0"}
    assert post(client).status_code == 200
    assert tracer.names() == []


def test_a_file_over_the_websocket(client: TestClient, tracer: MemoryTracer) -> None:
    with client.websocket_connect(websocket.PATH) as socket:
        socket.send_bytes(NOISE)
        socket.send_text("END")
        while socket.receive_json()["type"] != "final_transcription":
            pass
        assert socket.receive()["code"] == 1000
    request = tracer.only(f"WEBSOCKET {websocket.PATH}")
    assert all(is_within(tracer.only(name), request) for name in ("upload", "decode", "window", "merge", "render"))
    assert attributes(request)["http.response.status_code"] == 1000


def test_live_speech(client: TestClient, tracer: MemoryTracer) -> None:
    with client.websocket_connect(websocket.PATH) as socket:
        socket.send_json({"encoding": "pcm_s16le"})
        socket.send_bytes(np.full(16_000, 1000, np.int16).tobytes())
        socket.send_text("END")
        while socket.receive()["type"] != "websocket.close":
            pass
    assert is_within(tracer.only("stream"), tracer.only(f"WEBSOCKET {websocket.PATH}"))


class TestClientsThatLeave:
    """One line in the log each, and no traceback."""

    LINE = "{} ended without a complete response: the client left, or the server stops"

    @pytest.fixture(autouse=True)
    def _at_info(self, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.INFO, "ray.serve")

    @staticmethod
    def lines(caplog: pytest.LogCaptureFixture) -> list[str]:
        assert "Traceback" not in caplog.text
        return [record.getMessage() for record in caplog.records if record.name == "ray.serve"]

    @pytest.mark.parametrize("fields", [{}, {"stream": "true"}], ids=["transcript", "stream"])
    async def test_while_they_wait(
        self, server: FakeService, tracer: MemoryTracer, caplog: pytest.LogCaptureFixture, fields: dict[str, Any]
    ) -> None:
        server.hold.clear()
        request = TestClient(create_api(server.service)).build_request(
            "POST", "/v1/audio/transcriptions", files={"file": ("x.wav", media.wav(media.tone(3)))}, data=fields
        )
        client = OpenRequest(create_api(server.service), request.url.path, dict(request.headers))
        client.send(request.read(), more_body=False)
        async with asyncio.timeout(20):
            await until(lambda: bool(server.windows))
        client.disconnect()
        with pytest.raises(asyncio.CancelledError):
            await client.task
        assert self.lines(caplog) == [self.LINE.format(ROUTE)]
        assert attributes(tracer.only(ROUTE))["cancelled"]
        assert tracer.only(ROUTE).status.is_unset

    @pytest.mark.parametrize("path", [websocket.PATH, realtime.PATH])
    def test_connections(self, client: TestClient, caplog: pytest.LogCaptureFixture, path: str) -> None:
        with client.websocket_connect(path) as socket:
            socket.close(1006)
        assert self.lines(caplog) == [self.LINE.format(f"WebSocket {path}")]

    def test_a_complete_response_has_none(self, client: TestClient, caplog: pytest.LogCaptureFixture) -> None:
        assert post(client).status_code == 200
        assert post(client, b"no media").status_code == 400
        assert self.lines(caplog) == []
