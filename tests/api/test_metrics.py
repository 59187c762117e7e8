"""`/metrics` and its key, and the metrics of requests."""

import asyncio
import base64
from collections.abc import Awaitable, Callable

import httpx2
import numpy as np
import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect

from serve_app.api import create_api, realtime, websocket
from serve_app.api.metrics import MEDIA_TYPE, Routes
from serve_app.errors import EngineBroken, EngineError, ModelUnavailable, SpeechError
from serve_app.key_entries import HASHED, digest_of
from serve_app.observe import catalogue
from serve_app.settings import AuthSettings, IngressSettings
from serve_app.transcript import Token
from serve_app.window import SAMPLE_RATE, Job, Lane, Window
from testing import media
from testing.fake_service import NOISE, FakeService, assert_error, post
from testing.open_requests import FORM, FORM_HEAD, OpenRequest, until


async def scrape() -> str:
    return "ray_parakeet_live_streams 0.0\n"


def client_with(**auth: object) -> TestClient:
    service = FakeService(auth=AuthSettings.model_validate(auth)).service
    return TestClient(create_api(service, scrape), raise_server_exceptions=False)


def status(client: TestClient, key: str = "") -> int:
    return client.get("/metrics", headers={"authorization": f"Bearer {key}"} if key else {}).status_code


def test_the_answer_is_prometheus_text() -> None:
    response = client_with().get("/metrics")
    assert response.text == "ray_parakeet_live_streams 0.0\n"
    assert response.headers["content-type"].startswith(MEDIA_TYPE)


def test_without_an_exporter_it_says_so(client: TestClient) -> None:
    response = client.get("/metrics")
    assert_error(response, 503, "metrics_unavailable")
    assert response.headers["retry-after"]


class TestKeys:
    def test_without_a_key_of_its_own_it_needs_one_like_other_routes(self) -> None:
        client = client_with(keys=["one"])
        assert [status(client), status(client, "two"), status(client, "one")] == [401, 401, 200]

    @pytest.mark.parametrize("key", ["secret", f"prometheus: {HASHED}{digest_of(b'secret').hex()}"])
    @pytest.mark.parametrize("keys", [[], ["one"]])
    def test_with_one_it_is_the_only_one(self, key: str, keys: list[str]) -> None:
        client = client_with(metrics_key=key, keys=keys)
        assert [status(client), status(client, "one"), status(client, "secret")] == [401, 401, 200]
        assert client.get("/metrics/", headers={"authorization": "Bearer one"}).status_code == 401

    def test_it_opens_nothing_else(self) -> None:
        client = client_with(metrics_key="secret", keys=["one"])
        assert client.get("/v1/models", headers={"authorization": "Bearer secret"}).status_code == 401
        assert client.get("/v1/models", headers={"authorization": "Bearer one"}).status_code == 200

    def test_without_other_keys_the_rest_stays_open(self) -> None:
        assert client_with(metrics_key="secret").get("/v1/models").status_code == 200

    def test_an_empty_one_is_refused(self) -> None:
        with pytest.raises(ValidationError):
            AuthSettings.model_validate({"metrics_key": ""})


def failures(server: FakeService) -> dict[tuple[str, ...], float]:
    metrics = server.metrics
    return {labels: metrics.total(catalogue.FAILURES, *labels) for labels in metrics.labels(catalogue.FAILURES)}


def test_requests_are_counted_by_route_and_code(server: FakeService, client: TestClient) -> None:
    assert post(client).status_code == 200
    assert post(client, b"no media").status_code == 400
    for path in ("/health", "/health/", "/v1/models/first", "/v1/models/none", "/static/style.css", "/a/made/up/path", "/%00"):
        client.get(path)
    counted = {labels: server.metrics.total(catalogue.REQUESTS, *labels) for labels in server.metrics.labels(catalogue.REQUESTS)}
    assert counted == {
        ("/v1/audio/transcriptions", "200"): 1,
        ("/v1/audio/transcriptions", "400"): 1,
        ("/health", "200"): 2,
        ("/v1/models/{model}", "200"): 1,
        ("/v1/models/{model}", "404"): 1,
        ("/static", "200"): 1,
        ("other", "404"): 2,
    }
    assert failures(server) == {
        ("/v1/audio/transcriptions", "invalid_audio"): 1,
        ("/v1/models/{model}", "model_not_found"): 1,
        ("other", "invalid_request"): 2,
    }
    assert len(server.metrics.values(catalogue.REQUEST_LATENCY_SECONDS, "/v1/audio/transcriptions")) == 1
    assert server.metrics.labels(catalogue.REQUEST_LATENCY_SECONDS) == {(route,) for route, code in counted if code == "200"}


def test_refused_requests_are_counted_too() -> None:
    server = FakeService(auth=AuthSettings.model_validate({"keys": ["one"]}))
    with TestClient(create_api(server.service)) as client:
        client.get("/v1/models")
    assert server.metrics.labels(catalogue.REQUESTS) == {("/v1/models", "401")}
    assert failures(server) == {("/v1/models", "invalid_api_key"): 1}
    assert server.metrics.labels(catalogue.REQUEST_LATENCY_SECONDS) == set()


def test_connections_are_counted_by_close_code(server: FakeService, client: TestClient) -> None:
    with client.websocket_connect(websocket.PATH) as socket:
        socket.send_text("{not json")
        socket.receive_json()
        with pytest.raises(WebSocketDisconnect):
            socket.receive_json()
    with client.websocket_connect(realtime.PATH) as socket:
        socket.receive_json()
    assert server.metrics.labels(catalogue.REQUESTS) == {(websocket.PATH, "1007"), (realtime.PATH, "gone")}
    assert server.metrics.labels(catalogue.REQUEST_LATENCY_SECONDS) == set()


def test_a_connection_that_is_refused() -> None:
    server = FakeService(ingress=IngressSettings(cors_origins=("https://mine.example",)))
    with (
        TestClient(create_api(server.service)) as client,
        pytest.raises(WebSocketDisconnect),
        client.websocket_connect(websocket.PATH, headers={"origin": "https://other.example"}),
    ):
        pass
    assert server.metrics.labels(catalogue.REQUESTS) == {(websocket.PATH, "403")}


@pytest.mark.parametrize("leave", [OpenRequest.leave, OpenRequest.disconnect, OpenRequest.fail])
async def test_a_client_that_leaves(server: FakeService, leave: Callable[[OpenRequest], Awaitable[None] | None]) -> None:
    server.hold.clear()
    body = httpx2.Request("POST", "http://x/v1/audio/transcriptions", files={"file": ("x.wav", NOISE)})
    request = OpenRequest(create_api(server.service), body.url.path, dict(body.headers))
    request.send(body.read(), more_body=False)
    await until(lambda: bool(server.windows))
    if (leaving := leave(request)) is not None:
        await leaving
    await asyncio.wait([request.task])
    assert server.metrics.labels(catalogue.REQUESTS) == {("/v1/audio/transcriptions", "gone")}
    assert failures(server) == {}
    assert server.metrics.labels(catalogue.REQUEST_LATENCY_SECONDS) == set()


@pytest.mark.parametrize("leave", [OpenRequest.disconnect, OpenRequest.fail])
async def test_a_client_that_leaves_in_its_upload(server: FakeService, leave: Callable[[OpenRequest], None]) -> None:
    request = OpenRequest(create_api(server.service), "/v1/audio/transcriptions", FORM)
    request.send(FORM_HEAD)
    leave(request)
    await asyncio.wait([request.task])
    assert server.metrics.labels(catalogue.REQUESTS) == {("/v1/audio/transcriptions", "gone")}


def test_an_unforeseen_failure_counts_as_500(server: FakeService, client: TestClient) -> None:
    server.failure = KeyError("x")
    assert post(client).status_code == 500
    assert server.metrics.labels(catalogue.REQUESTS) == {("/v1/audio/transcriptions", "500")}
    assert failures(server) == {("/v1/audio/transcriptions", "server_error"): 1}


class SecondWindowService(FakeService):
    """After the first window of a file, `failure` is raised, or windows wait where there is none."""

    async def recognise(self, window: Window, lane: Lane, job: Job) -> list[Token]:
        failure, self.failure = self.failure, None
        if window.index > 0 and failure is None:
            await asyncio.Event().wait()
        try:
            self.failure = failure if window.index > 0 else None
            return await super().recognise(window, lane, job)
        finally:
            self.failure = failure


def streamed(server: FakeService) -> OpenRequest:
    """A file of several windows, of which the client gets events."""
    speech = np.random.default_rng(0).normal(0, 0.1, 20 * 8_000).astype(np.float32)
    data = media.wav(np.concatenate([part for _ in range(5) for part in (speech, 0 * speech[:24_000])]), 8_000, "PCM_U8")
    fields = {"stream": "true", "include[]": "progress"}
    body = httpx2.Request("POST", "http://x/v1/audio/transcriptions", files={"file": ("x.wav", data)}, data=fields)
    request = OpenRequest(create_api(server.service), body.url.path, dict(body.headers))
    request.send(body.read(), more_body=False)
    return request


async def test_an_event_stream_that_fails_after_its_first_event() -> None:
    server = SecondWindowService()
    server.failure = EngineError("it is broken")
    response = await streamed(server).response()
    assert (response.status_code, "engine_error" in response.text) == (200, True)
    assert server.metrics.labels(catalogue.REQUESTS) == {("/v1/audio/transcriptions", "200")}
    assert failures(server) == {("/v1/audio/transcriptions", "engine_error"): 1}


@pytest.mark.parametrize("leave", [OpenRequest.leave, OpenRequest.disconnect, OpenRequest.fail])
async def test_a_client_that_leaves_an_event_stream(leave: Callable[[OpenRequest], Awaitable[None] | None]) -> None:
    server = SecondWindowService()
    request = streamed(server)
    await until(lambda: len(request.sent) > 1)
    if (leaving := leave(request)) is not None:
        await leaving
    await asyncio.wait([request.task])
    assert server.metrics.labels(catalogue.REQUESTS) == {("/v1/audio/transcriptions", "gone")}
    assert failures(server) == {}
    assert server.metrics.labels(catalogue.REQUEST_LATENCY_SECONDS) == set()


SPEECH = (np.random.default_rng(0).normal(0, 0.1, 4 * SAMPLE_RATE) * 32767).astype(np.int16).tobytes()


@pytest.mark.parametrize("error", [EngineBroken("x"), ModelUnavailable("x"), EngineError("x")])
def test_failures_of_connections_are_counted_by_their_codes(server: FakeService, client: TestClient, error: SpeechError) -> None:
    server.failure = error
    with client.websocket_connect(websocket.PATH) as socket:
        socket.send_json({"encoding": "pcm_s16le"})
        socket.send_bytes(SPEECH)
        socket.send_text("END")
        while socket.receive_json()["type"] != "error":
            pass
        with pytest.raises(WebSocketDisconnect):
            socket.receive_json()
    assert failures(server) == {(websocket.PATH, error.code): 1}


def test_failures_in_a_session_that_goes_on_are_counted(server: FakeService, client: TestClient) -> None:
    server.failure = EngineError("it is broken")
    with client.websocket_connect(realtime.PATH) as socket:
        update = {"type": "transcription", "audio": {"input": {"turn_detection": None}}}
        socket.send_json({"type": "session.update", "session": update})
        socket.send_json({"type": "input_audio_buffer.commit"})  # of nothing
        for _ in range(2):
            socket.send_json({"type": "input_audio_buffer.append", "audio": base64.b64encode(SPEECH).decode()})
            socket.send_json({"type": "input_audio_buffer.commit"})
            while not socket.receive_json()["type"].endswith(".failed"):
                pass
    assert failures(server) == {
        (realtime.PATH, "engine_error"): 2,
        (realtime.PATH, "input_audio_buffer_commit_empty"): 1,
    }
    assert server.metrics.labels(catalogue.REQUESTS) == {(realtime.PATH, "gone")}


def test_the_bytes_of_an_upload_are_counted_while_it_is_in_progress(server: FakeService, client: TestClient) -> None:
    held: list[int] = []
    recognise = server.recognise

    async def looking(*arguments: object) -> object:
        held.append(server.service.admission.spooled_bytes)
        return await recognise(*arguments)  # type: ignore[arg-type]

    server.recognise = looking  # type: ignore[method-assign, assignment]
    assert post(client).status_code == 200
    assert held[0] > 90_000
    assert server.service.admission.spooled_bytes == 0


def test_routes_are_bounded() -> None:
    routes = Routes(["/a", "/b/{name}"], folders=["/static"])
    names = [routes.name(path) for path in ("/a", "/b/c", "/b/c/d", "/static/x/y", "/static", "/statics", "")]
    assert names == ["/a", "/b/{name}", "other", "/static", "other", "other", "other"]
