"""Forms as other libraries write them."""

import re
from typing import Any

import pytest
from fastapi.testclient import TestClient

from serve_app.api.forms import LIST_FIELDS
from testing import media
from testing.fake_service import NOISE, FakeService, assert_error, post

HEADERS = {"Content-Type": "multipart/form-data; boundary=x"}


def part(disposition: str, data: bytes) -> bytes:
    return b"--x\r\nContent-Disposition: form-data; " + disposition.encode() + b"\r\n\r\n" + data + b"\r\n"


FILE = part('name="file"; filename="x.wav"', NOISE)
END = b"--x--\r\n"


def send(client: TestClient, body: bytes) -> Any:
    return client.post("/v1/audio/transcriptions", content=body, headers=HEADERS)


class TestListFields:
    SPELLINGS = ("{}", "{}[]", "{}[0]")

    @pytest.mark.parametrize("spelling", SPELLINGS)
    def test_every_spelling_means_the_same(self, client: TestClient, server: FakeService, spelling: str) -> None:
        fields = {"timestamp_granularities": "word", "include": "logprobs", "keywords": "Bob", "languages": "en"}
        body = post(
            client, response_format="verbose_json", **{spelling.format(name): text for name, text in fields.items()}
        ).json()
        assert {"words", "logprobs"} < set(body)
        assert server.jobs[0].keywords == ("Bob",)
        assert_error(post(client, **{spelling.format("languages"): "fr"}), 400, "invalid_request", "language")

    @pytest.mark.parametrize("spelling", SPELLINGS)
    @pytest.mark.parametrize("name", LIST_FIELDS)
    def test_empty_items_are_ignored(self, client: TestClient, name: str, spelling: str) -> None:
        assert post(client, **{spelling.format(name): ["", " "]}).status_code == 200

    def test_several_items(self, client: TestClient, server: FakeService) -> None:
        repeated = part('name="keywords"', b"Bob") + part('name="keywords"', b"") + part('name="keywords"', b"Alice, Ann")
        assert send(client, FILE + repeated + END).status_code == 200
        indexed = part('name="keywords[0]"', b"Bob") + part('name="keywords[1]"', b"Alice, Ann")
        assert send(client, FILE + indexed + END).status_code == 200
        assert [job.keywords for job in server.jobs] == [("Bob", "Alice, Ann")] * 2

    @pytest.mark.parametrize("spelling", SPELLINGS)
    def test_a_wrong_item_is_refused(self, client: TestClient, spelling: str) -> None:
        answer = post(client, **{spelling.format("timestamp_granularities"): ["word", "letter"]})
        assert_error(answer, 400, "invalid_value", "timestamp_granularities[]")

    def test_each_is_described_with_brackets(self, client: TestClient) -> None:
        schemas = client.get("/openapi.json").json()["components"]["schemas"]
        fields = {
            name: field for form in schemas if form.startswith("Body_") for name, field in schemas[form]["properties"].items()
        }
        assert {name for name, field in fields.items() if field.get("type") == "array"} == {f"{name}[]" for name in LIST_FIELDS}


class TestFile:
    @pytest.mark.parametrize("disposition", ['name="file"', "name=file", "name=\"file\"; filename*=UTF-8''x.wav"])
    @pytest.mark.parametrize("seconds", [1, 20])
    def test_without_a_filename(self, client: TestClient, disposition: str, seconds: int) -> None:
        data = media.wav(media.tone(seconds, 8_000), 8_000)
        assert (len(data) > 65_536) == (seconds == 20)
        answer = send(client, part(disposition, data) + END)
        assert answer.json()["duration"] == seconds

    def test_a_path_instead_of_a_file(self, client: TestClient) -> None:
        """`curl -F file=x.wav` without `@`."""
        assert_error(send(client, part('name="file"', b"x.wav") + END), 400, "invalid_audio", "file")

    def test_a_form_that_cannot_hold_a_file(self, client: TestClient) -> None:
        message = assert_error(client.post("/v1/audio/transcriptions", data={"file": "x"}), 400, "invalid_value", "file")
        assert "multipart" in message
        assert "UploadFile" not in message


@pytest.mark.parametrize("fields", [b"", part('name="response_format"', b"text"), part('name="model"', b"second")])
def test_a_form_that_ends_early_is_refused_wherever_it_is_cut(client: TestClient, fields: bytes) -> None:
    """The field that was cut off would be missing, and the request another one."""
    body = FILE + fields + END
    assert send(client, body).status_code == 200
    for end in [0, len(FILE) // 2, *range(len(FILE) - 5, len(body) - 2, 7), len(body) - 3]:
        answer = send(client, body[:end])
        assert answer.status_code == 400
        assert re.search("boundary|required", answer.json()["error"]["message"]), end


def test_the_fields_are_limited_in_all(client: TestClient) -> None:
    answer = send(client, FILE + part('name="keywords[]"', b"a" * 60_000) * 5 + END)
    assert "256 KB" in assert_error(answer, 400, "invalid_request")
