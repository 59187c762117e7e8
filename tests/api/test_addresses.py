"""Addresses as clients spell them: HEAD, slashes at the end, a prefix, wrong base addresses."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from serve_app.api import create_api
from serve_app.settings import AuthSettings
from testing.fake_service import NOISE, FakeService, assert_error, post


@pytest.fixture(params=["", "/speech/a"])
def prefix(request: pytest.FixtureRequest) -> str:
    """Where a proxy, or `route_prefix` of Serve, mounts the server."""
    return str(request.param)


@pytest.fixture
def mounted(server: FakeService, prefix: str) -> Iterator[TestClient]:
    with TestClient(create_api(server.service), root_path=prefix, follow_redirects=False) as client:
        yield client


PATHS = [
    *("/", "/static/app.js", "/docs", "/openapi.json", "/health", "/ready", "/v1/models", "/v1/models/second"),
    *("/v1/models/none", "/nowhere", "/v1/audio/transcriptions"),
]


@pytest.mark.parametrize("path", PATHS)
def test_head_is_get_without_the_body(mounted: TestClient, prefix: str, path: str) -> None:
    get, head = mounted.get(prefix + path), mounted.head(prefix + path)
    assert (head.status_code, head.headers, head.content) == (get.status_code, get.headers, b"")
    assert get.content


@pytest.mark.parametrize("path", [path for path in PATHS if path != "/"])
def test_a_slash_at_the_end_does_not_matter(mounted: TestClient, prefix: str, path: str) -> None:
    without, with_slash = mounted.get(prefix + path), mounted.get(f"{prefix}{path}/")
    assert with_slash.status_code == without.status_code
    assert path in ("/nowhere", "/ready") or with_slash.content == without.content


def test_an_upload_to_an_address_with_a_slash(client: TestClient) -> None:
    answer = client.post("/v1/audio/transcriptions/", files={"file": NOISE}, follow_redirects=False)
    assert answer.json()["text"] == post(client).json()["text"]


def test_a_socket_at_an_address_with_a_slash(client: TestClient) -> None:
    with client.websocket_connect("/v1/audio/transcriptions/ws/") as socket:
        socket.send_text("END")
        assert socket.receive_json()["code"] == "invalid_audio"


def test_the_page_below_a_prefix_is_at_the_slash(server: FakeService) -> None:
    """Its links are relative. The redirection is relative too, so that it stays behind whatever proxy the client uses."""
    with TestClient(create_api(server.service), root_path="/speech/a", follow_redirects=False) as client:
        answer = client.get("/speech/a")
        assert (answer.status_code, answer.headers["location"]) == (307, "a/")
        assert client.get("/speech/a/").status_code == 200


@pytest.mark.parametrize("forwarded", ["/stt", "/stt/", "/a/b-c"])
def test_links_name_the_prefix_that_a_proxy_has_removed(mounted: TestClient, prefix: str, forwarded: str) -> None:
    headers, full = {"X-Forwarded-Prefix": forwarded}, forwarded.rstrip("/") + prefix
    assert f"url: '{full}/openapi.json'" in mounted.get(f"{prefix}/docs", headers=headers).text
    assert mounted.get(f"{prefix}/openapi.json", headers=headers).json()["servers"] == [{"url": full}]
    assert f"Did you mean {full}/health?" in mounted.get(f"{prefix}/v1/health", headers=headers).text
    assert mounted.get(f"{prefix}/static/app.js", headers=headers).status_code == 200


@pytest.mark.parametrize(
    "forwarded", ["stt", "//evil.example", "/a'b", "/<script>", "/a b", "/", "https://evil.example", "/a" * 9]
)
def test_a_forwarded_prefix_that_is_no_plain_path_is_ignored(mounted: TestClient, prefix: str, forwarded: str) -> None:
    answer = mounted.get(f"{prefix}/docs", headers={"X-Forwarded-Prefix": forwarded})
    assert answer.text == mounted.get(f"{prefix}/docs").text


def test_a_forwarded_prefix_opens_nothing() -> None:
    server = FakeService(auth=AuthSettings(keys=("secret",)))
    with TestClient(create_api(server.service)) as client:
        assert client.get("/v1/models", headers={"X-Forwarded-Prefix": "/static"}).status_code == 401


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        ("/v1//audio/transcriptions", "/v1/audio/transcriptions"),
        ("//v1/audio/transcriptions", "/v1/audio/transcriptions"),
        ("/audio/transcriptions", "/v1/audio/transcriptions"),
        ("/transcriptions", "/v1/audio/transcriptions"),
        ("/v1/v1/audio/translations", "/v1/audio/translations"),
        ("/v1/audio/transcriptions/audio/transcriptions", "/v1/audio/transcriptions"),
        ("/openai/deployments/x/audio/transcriptions", "/v1/audio/transcriptions"),
        ("/models/second", "/v1/models"),
        ("/v1/health", "/health"),
    ],
)
def test_a_wrong_base_address_is_told_the_right_one(mounted: TestClient, prefix: str, wrong: str, right: str) -> None:
    message = assert_error(mounted.get(prefix + wrong), 404, "invalid_request")
    assert f"Did you mean {prefix}{right}?" in message


@pytest.mark.parametrize("path", ["/v1/chat/completions", "/static/none.js", "/v1"])
def test_no_hint_where_nothing_is_alike(client: TestClient, path: str) -> None:
    assert "mean" not in assert_error(client.get(path), 404, "invalid_request")
