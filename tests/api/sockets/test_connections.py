"""Connections of both WebSocket routes: from which pages they may come, and their places before and after the first audio."""

import base64
import logging
from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient
from starlette.testclient import WebSocketTestSession
from starlette.types import Message
from starlette.websockets import WebSocketDisconnect

from serve_app.api import create_api
from serve_app.api.websocket import PATH
from serve_app.api.websocket_connection import may_connect
from serve_app.decoders.recording import Recording
from serve_app.errors import EngineError
from serve_app.settings import IngressSettings, LimitSettings, LiveSettings
from testing import media
from testing.fake_service import FakeService
from testing.realtime_client import URL, Talk
from testing.seed_socket_client import RAW, failure, until_end, wait_for

APPEND = {"type": "input_audio_buffer.append", "audio": base64.b64encode(bytes(4_800)).decode()}


def assert_refused(socket: WebSocketTestSession) -> None:
    """Assert an error `overloaded` and its close code."""
    message = socket.receive_json()
    # Each protocol has its own form of an error.
    assert (message.get("code") or message["error"]["code"]) == "overloaded"
    with pytest.raises(WebSocketDisconnect) as closed:
        socket.receive_json()
    assert closed.value.code == 1013


class TestPlaces:
    @pytest.fixture
    def server(self) -> FakeService:
        return FakeService(live=LiveSettings(max_streams=1, max_waiting=3, max_waiting_per_address=2))

    @pytest.mark.parametrize("path", [PATH, URL])
    def test_connections_without_audio_are_limited_per_address(self, client: TestClient, server: FakeService, path: str) -> None:
        with client.websocket_connect(path), client.websocket_connect(path):
            wait_for(lambda: server.service.admission.waiting.taken == 2)
            assert server.service.admission.streams.taken == 0
            with client.websocket_connect(path) as third:
                assert_refused(third)
        wait_for(lambda: server.service.admission.waiting.taken == 0)

    def test_connections_without_audio_are_limited_in_all(self, client: TestClient, server: FakeService) -> None:
        waiting = server.service.admission.waiting
        with waiting.take("one"), waiting.take("two"), client.websocket_connect(PATH):
            wait_for(lambda: waiting.taken == 3)
            with client.websocket_connect(PATH) as fourth:
                assert_refused(fourth)

    def test_the_first_audio_takes_the_place_of_a_stream(self, client: TestClient, server: FakeService) -> None:
        admission = server.service.admission
        with client.websocket_connect(PATH) as first, client.websocket_connect(URL) as second:
            first.send_json(RAW)
            first.send_bytes(bytes(2))
            wait_for(lambda: (admission.waiting.taken, admission.streams.taken) == (1, 1))
            Talk(second)
            second.send_json(APPEND)
            assert_refused(second)
            first.send_text("END")
            assert until_end(first)[-1]["type"] == "final_transcription"
        wait_for(lambda: (admission.waiting.taken, admission.streams.taken) == (0, 0))
        with client.websocket_connect(URL) as third:
            Talk(third)
            third.send_json(APPEND)
            wait_for(lambda: admission.streams.taken == 1)

    def test_every_separate_channel_takes_a_place(self) -> None:
        server = FakeService(live=LiveSettings(max_streams=3))
        taken = server.service.admission.streams
        two = {**RAW, "channels": 2, "multichannel": True}
        with TestClient(create_api(server.service)) as client, client.websocket_connect(PATH) as first:
            first.send_json(two)
            first.send_bytes(bytes(4))
            wait_for(lambda: taken.taken == 2)
            assert failure(client, [two, bytes(4)], 1013)["code"] == "overloaded"
            wait_for(lambda: taken.taken == 2)
            with client.websocket_connect(PATH) as third:
                third.send_json({**RAW, "channels": 2})
                third.send_bytes(bytes(4))
                wait_for(lambda: taken.taken == 3)
        wait_for(lambda: taken.taken == 0)

    def test_streams_are_limited_per_address(self) -> None:
        server = FakeService(live=LiveSettings(max_streams=3, max_streams_per_address=1))
        with (
            TestClient(create_api(server.service)) as client,
            client.websocket_connect(PATH) as first,
            client.websocket_connect(PATH) as second,
        ):
            for socket in (first, second):
                socket.send_json(RAW)
                socket.send_bytes(bytes(2))
                wait_for(lambda: server.service.admission.streams.taken == 1)
            assert_refused(second)

    def test_a_configuration_that_is_too_long(self, client: TestClient) -> None:
        error = failure(client, ['{"model": "' + "x" * 70_000 + '"}'], 1007)
        assert "65536" in error["error"]


class TestOrigins:
    @pytest.fixture
    def client(self) -> Iterator[TestClient]:
        server = FakeService(ingress=IngressSettings(cors_origins=("https://page.example",)))
        with TestClient(create_api(server.service)) as client:
            yield client

    @pytest.mark.parametrize("path", [PATH, URL])
    def test_a_foreign_page_is_refused(self, client: TestClient, path: str) -> None:
        with pytest.raises(WebSocketDisconnect), client.websocket_connect(path, headers={"Origin": "https://foreign.example"}):
            pytest.fail("The connection was accepted.")

    @pytest.mark.parametrize("origin", ["https://page.example", "http://testserver", None])
    def test_others_are_not(self, client: TestClient, origin: str | None) -> None:
        with client.websocket_connect(URL, headers={} if origin is None else {"Origin": origin}) as socket:
            Talk(socket)


@pytest.mark.parametrize(
    ("headers", "is_allowed"),
    [
        ({}, True),
        ({"origin": "https://page.example"}, True),
        ({"origin": "https://page.example:8443"}, False),
        ({"origin": "null"}, False),
        ({"origin": "null", "host": ""}, False),
        ({"origin": "http://Server.example:8000", "host": "server.example:8000"}, True),
        ({"origin": "http://server.example", "host": "server.example:8000"}, False),
        ({"origin": "https://server.example", "host": "10.0.0.1:8000"}, False),
        ({"origin": "https://server.example", "host": "10.0.0.1", "x-forwarded-host": "server.example, proxy.example"}, True),
    ],
)
def test_origins(headers: dict[str, str], is_allowed: bool) -> None:
    assert may_connect(headers, ["https://page.example"]) == is_allowed
    assert may_connect(headers, ["*"])


def test_a_failure_during_an_upload_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even while the decoder waits for more of the file; not as `stream_idle` later."""
    server = FakeService(live=LiveSettings(idle_s=5), limits=LimitSettings())
    sent, starved_at = media.wav(media.chirp(100.0))[:-100_000], [0]
    server.failure = EngineError("It broke.")
    server.hold.clear()
    starve = Recording._starve

    def noted_starve(recording: Recording, position: int) -> None:
        starved_at.append(position)
        starve(recording, position)

    monkeypatch.setattr(Recording, "_starve", noted_starve)
    with TestClient(create_api(server.service)) as client, client.websocket_connect(PATH) as socket:
        client.get("/ready")
        assert server.loop is not None
        socket.send_bytes(sent)
        wait_for(lambda: starved_at[-1] == len(sent) and bool(server.windows))
        server.loop.call_soon_threadsafe(server.hold.set)
        assert until_end(socket)[-1]["error"] == "It broke."
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
        assert closed.value.code == 1011


@pytest.mark.parametrize("path", [PATH, URL])
def test_the_request_id_is_returned(client: TestClient, path: str) -> None:
    with client.websocket_connect(path, headers={"x-request-id": "one-of-mine"}) as session:
        assert session.extra_headers == [(b"x-request-id", b"one-of-mine")]
    with client.websocket_connect(path) as session:
        assert not session.extra_headers


@pytest.mark.parametrize("path", [PATH, URL])
@pytest.mark.parametrize("last", ["websocket.connect", "websocket.receive"])
async def test_a_proxy_that_dies_is_a_client_that_has_gone(
    server: FakeService, caplog: pytest.LogCaptureFixture, path: str, last: str
) -> None:
    """Serve raises an error of its own from `receive`."""
    messages = [{"type": "websocket.connect"}, {"type": "websocket.receive", "text": "{}"}]
    sent = []

    async def receive() -> Message:
        message = messages.pop(0)
        if message["type"] == last:
            raise LookupError("The actor died.")
        return message

    async def send(message: Message) -> None:
        sent.append(message["type"])

    path, _, query = path.partition("?")
    scope = {"type": "websocket", "path": path, "query_string": query.encode(), "headers": [], "client": ("192.0.2.1", 50_000)}
    await create_api(server.service)(scope, receive, send)
    assert sent[:1] == ([] if last == "websocket.connect" else ["websocket.accept"])
    assert "websocket.close" not in sent
    assert server.service.admission.waiting.taken == 0
    assert not [record for record in caplog.records if record.levelno > logging.INFO]
