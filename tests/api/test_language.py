"""Spellings of languages, in forms, sockets and on the command line, which sends them as they are."""

import pytest
from fastapi.testclient import TestClient

from serve_app.api import language
from serve_app.api.language import CODES, THREE_LETTER_CODES
from serve_app.output.export import LANGUAGE_NAMES
from testing.fake_service import post


@pytest.mark.parametrize(
    ("name", "code"),
    [
        *(("en", "en"), ("EN", "en"), ("en-US", "en"), ("en_US.UTF-8", "en"), (" English ", "en"), ("English (US)", "en")),
        *(
            ("eng", "en"),
            ("ENG-us", "en"),
            ("ger", "de"),
            ("deu", "de"),
            ("fre", "fr"),
            ("cze", "cs"),
            ("ekk", "et"),
            ("lvs", "lv"),
        ),
        *(("klingon", "klingon"), ("tlh", "tlh"), ("日本語", "日本語"), ("***", "***")),
    ],
)
def test_a_language(name: str, code: str) -> None:
    assert language.codes([name]) == [code]


@pytest.mark.parametrize(
    "name", ["", " ", "und", "UND", "und-US", "auto", "auto-detect", "Auto Detect", "unknown", "none", "null", "mul", "zxx"]
)
def test_an_unknown_language_asks_for_none(name: str) -> None:
    assert language.codes([name]) == []
    assert language.codes([name, "eng"]) == ["en"]


def test_every_language_has_its_three_letter_codes() -> None:
    assert set(THREE_LETTER_CODES) == set(LANGUAGE_NAMES)
    three_letters = [code for several in THREE_LETTER_CODES.values() for code in several.split()]
    assert len(set(three_letters)) == len(three_letters)
    assert all(len(code) == 3 for code in three_letters)
    assert len(CODES) == len(LANGUAGE_NAMES) + len(three_letters)


def test_over_rest(client: TestClient) -> None:
    assert post(client, language="eng").json()["language"] == "en"
    assert post(client, language="und", model="second").json()["language"] == "de"


@pytest.mark.parametrize(("name", "message"), [("eng", "No audio"), ("und", "No audio"), ("ger", "language `de`")])
def test_over_the_websocket(client: TestClient, name: str, message: str) -> None:
    with client.websocket_connect("/v1/audio/transcriptions/ws") as socket:
        socket.send_json({"language": name, "model": "gpt-4o-transcribe"})
        socket.send_text("END")
        assert message in socket.receive_json()["error"]
