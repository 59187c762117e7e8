"""The files of the web page: their headers, their size, and that they load nothing from other servers."""

import re

import pytest
from fastapi.testclient import TestClient

from serve_app.api.web_page import FOLDER
from testing.fake_service import assert_error

MAX_LINES = 2500
FILES = sorted(path.name for path in FOLDER.iterdir())


@pytest.mark.parametrize("path", ["/", *(f"/static/{name}" for name in FILES)])
def test_every_file_is_revalidated_and_has_a_strict_policy(client: TestClient, path: str) -> None:
    answer = client.get(path)
    assert answer.status_code == 200
    assert answer.headers["cache-control"] == "no-cache"
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("default-src 'none'; script-src 'self'; style-src 'self';")
    assert "unsafe" not in policy
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert client.get(path, headers={"If-None-Match": answer.headers["etag"]}).status_code == 304


def test_unknown_files(client: TestClient) -> None:
    assert_error(client.get("/static/none.js"), 404, "invalid_request")
    assert_error(client.get("/static/../settings.py"), 404, "invalid_request")
    assert client.post("/").status_code == 405


def test_the_page_is_small() -> None:
    assert sum(len(path.read_text().splitlines()) for path in FOLDER.iterdir()) < MAX_LINES


@pytest.mark.parametrize("name", FILES)
def test_no_other_server_is_named(name: str) -> None:
    text = (FOLDER / name).read_text().replace("http://www.w3.org/2000/svg", "")
    assert not re.search(r"(https?:)?//[a-z0-9-]+\.[a-z]", text)
    assert "style=" not in text
    assert not re.search(r"\bon[a-z]+=\"", text)
