"""`keywords[]` and `prompt`: from the form's fields to the model."""

from collections.abc import Iterable

import pytest
from fastapi.testclient import TestClient

from serve_app.api.keywords import (
    MAX_KEYWORD_CHARS,
    MAX_KEYWORDS,
    MAX_PROMPT_CHARS,
    MAX_TOTAL_CHARS,
    Phrases,
    _normalised,
    phrases,
)
from serve_app.cluster.status import ReplicaStatus
from testing.fake_service import FakeService, assert_error, post


def test_every_window_carries_the_keywords(client: TestClient, server: FakeService) -> None:
    assert post(client, **{"keywords[]": [" Ray  Serve", "NeMo", "NeMo", ""], "prompt": "Parakeet, NeMo"}).status_code == 200
    assert {job.keywords for job in server.jobs} == {("Ray Serve", "NeMo", "Parakeet")}


def test_no_keywords(client: TestClient, server: FakeService) -> None:
    post(client)
    assert {job.keywords for job in server.jobs} == {()}


@pytest.mark.parametrize(
    ("prompt", "listed"),
    [
        ("Parakeet, Ray Serve, NeMo", ("Parakeet", "Ray Serve", "NeMo")),
        ("Parakeet;NeMo", ("Parakeet", "NeMo")),
        ("Parakeet\n- NeMo\n", ("Parakeet", "NeMo")),
        ("en", ()),
        ("", ()),
        ("Hello, this is a talk about parakeets", ()),
        ("Node.js, Kubernetes", ("Node.js", "Kubernetes")),
        ("Hello, Bob. Welcome", ()),
        ("Names: Bob, Alice", ()),
    ],
)
def test_a_prompt_counts_only_if_it_is_a_plain_list(prompt: str, listed: tuple[str, ...]) -> None:
    assert phrases(None, prompt) == Phrases(listed=listed)


def test_a_long_prompt_counts_as_prose() -> None:
    prompt = "NeMo,Parakeet".ljust(MAX_PROMPT_CHARS, ",")
    assert phrases(None, prompt).listed == ("NeMo", "Parakeet")
    assert phrases(None, prompt + ",").listed == ()


def test_every_phrase_is_normalised_once(monkeypatch: pytest.MonkeyPatch) -> None:
    handled = []

    def normalised(phrases: Iterable[str]) -> tuple[str, ...]:
        listed = list(phrases)
        handled.append(len(listed))
        return _normalised(listed)

    monkeypatch.setattr("serve_app.api.keywords._normalised", normalised)
    prompt = ",".join(f"{n}" for n in range(1_600))
    assert len(phrases(None, prompt).listed) == MAX_KEYWORDS
    assert sum(handled) == 1_600


def test_too_many_or_too_long(client: TestClient) -> None:
    too_many = [f"phrase {n}" for n in range(MAX_KEYWORDS + 1)]
    assert str(len(too_many)) in assert_error(post(client, **{"keywords[]": too_many}), 400, "invalid_request", "keywords[]")
    too_long = "x" * (MAX_KEYWORD_CHARS + 1)
    assert_error(post(client, **{"keywords[]": [too_long]}), 400, "invalid_request", "keywords[]")
    too_much = [f"{n:03}".rjust(MAX_KEYWORD_CHARS, "x") for n in range(MAX_TOTAL_CHARS // MAX_KEYWORD_CHARS + 1)]
    assert_error(post(client, **{"keywords[]": too_much}), 400, "invalid_request", "keywords[]")
    assert post(client, **{"keywords[]": too_much[1:]}).status_code == 200
    assert post(client, **{"keywords[]": too_many[1:]}).status_code == 200


def test_a_prompt_is_never_rejected_and_fills_up_to_the_limits() -> None:
    given = [f"phrase {n}" for n in range(MAX_KEYWORDS - 1)]
    assert phrases(given, "one, two") == Phrases(tuple(given), ("one",))
    assert phrases(None, f"one, {'x' * (MAX_KEYWORD_CHARS + 1)}, two").listed == ("one", "two")
    assert sum(map(len, phrases(None, ",".join(f"{n:050}" for n in range(90))).listed)) == MAX_TOTAL_CHARS


class TestAModelWithoutKeywords:
    @pytest.fixture
    def server(self) -> FakeService:
        server = FakeService()
        server.replicas["first"] = (ReplicaStatus("loading", "loading"), ReplicaStatus("a", "ready", takes_keywords=False))
        return server

    @pytest.mark.parametrize("route", ["transcriptions", "translations"])
    def test_keywords_are_refused_before_the_file_is_decoded(self, client: TestClient, server: FakeService, route: str) -> None:
        fields = {"keywords[]": ["Bob"], "prompt": "Alice, Ann"}
        answer = client.post(f"/v1/audio/{route}", files={"file": ("x.wav", b"no audio")}, data=fields)
        assert "`first` has a CTC decoder" in assert_error(answer, 400, "invalid_request", "keywords[]")
        assert server.jobs == []

    def test_a_prompt_counts_as_prose(self, client: TestClient, server: FakeService) -> None:
        assert post(client, prompt="Alice, Ann").status_code == 200
        assert {job.keywords for job in server.jobs} == {()}
