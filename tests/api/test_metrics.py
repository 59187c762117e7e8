"""`/metrics` and its key, and the metrics of requests."""

import asyncio
from collections.abc import Awaitable, Callable

import httpx2
import pytest
from fastapi.testclient import TestClient
from pydantic import ValidationError
from starlette.websockets import WebSocketDisconnect

from serve_app.api import create_api, realtime, websocket
from serve_app.api.metrics import MEDIA_TYPE, Routes
from serve_app.key_entries import HASHED, digest_of
from serve_app.observe import catalogue
from serve_app.settings import AuthSettings, IngressSettings
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
    assert len(server.metrics.values(catalogue.REQUEST_LATENCY_SECONDS, "/v1/audio/transcriptions")) == 2


def test_refused_requests_are_counted_too() -> None:
    server = FakeService(auth=AuthSettings.model_validate({"keys": ["one"]}))
    with TestClient(create_api(server.service)) as client:
        client.get("/v1/models")
    assert server.metrics.labels(catalogue.REQUESTS) == {("/v1/models", "401")}


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


@pytest.mark.parametrize("leave", [OpenRequest.leave, OpenRequest.disconnect])
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


async def test_a_client_that_leaves_in_its_upload(server: FakeService) -> None:
    request = OpenRequest(create_api(server.service), "/v1/audio/transcriptions", FORM)
    request.send(FORM_HEAD)
    request.disconnect()
    await asyncio.wait([request.task])
    assert server.metrics.labels(catalogue.REQUESTS) == {("/v1/audio/transcriptions", "gone")}


def test_an_unforeseen_failure_counts_as_500(server: FakeService, client: TestClient) -> None:
    server.failure = KeyError("x")
    assert post(client).status_code == 500
    assert server.metrics.labels(catalogue.REQUESTS) == {("/v1/audio/transcriptions", "500")}


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
