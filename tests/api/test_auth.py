"""API keys: authentication, limits per key, and that keys are never printed or logged."""

import logging
from contextlib import ExitStack
from typing import Any

import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr, ValidationError

from serve_app.api import create_api
from serve_app.api.auth import Keys
from serve_app.errors import InvalidKey, RateLimited
from serve_app.settings import AuthSettings, Settings
from testing.fake_service import NOISE, FakeService, assert_error, post

KEYS = (SecretStr("first-key"), SecretStr("second-key-é"))


def client_with(auth: AuthSettings, key: str | None = None) -> TestClient:
    headers = {} if key is None else {"Authorization": f"Bearer {key}"}
    return TestClient(create_api(FakeService(auth=auth).service), raise_server_exceptions=False, headers=headers)


def test_without_keys_everything_is_open() -> None:
    with client_with(AuthSettings()) as client:
        assert post(client).status_code == 200
    with client_with(AuthSettings(), "any") as client:
        assert post(client).status_code == 200


class TestWithKeys:
    AUTH = AuthSettings(keys=KEYS)

    @pytest.mark.parametrize("path", ["/v1/models", "/nowhere", "/staticky"])
    @pytest.mark.parametrize("key", [None, "", "wrong", "first-key-and-more", "first"])
    def test_other_routes_need_a_key(self, path: str, key: str | None) -> None:
        with client_with(self.AUTH, key) as client:
            assert_error(client.get(path), 401, "invalid_api_key")
            refused = post(client)
            assert_error(refused, 401, "invalid_api_key")
            assert refused.headers["www-authenticate"] == "Bearer"
            assert client.get("/health").status_code == 200

    @pytest.mark.parametrize("path", ["/", "/static/app.js", "/docs", "/openapi.json", "/health/"])
    @pytest.mark.parametrize("prefix", ["", "/speech"])
    def test_public_routes_need_none(self, path: str, prefix: str) -> None:
        api = create_api(FakeService(auth=self.AUTH).service)
        with TestClient(api, root_path=prefix) as client:
            assert client.get(prefix + path).status_code == 200
            assert client.head(prefix + path).status_code == 200
            assert_error(client.get(f"{prefix}/v1/models"), 401, "invalid_api_key")

    @pytest.mark.parametrize(("key", "is_shown"), [(None, False), ("wrong", False), ("first-key", True)])
    def test_the_details_of_readiness_need_one(self, key: str | None, is_shown: bool) -> None:
        with client_with(self.AUTH, key) as client:
            answer = client.get("/ready")
        assert answer.status_code == 503
        assert set(answer.json()) == ({"ready", "models"} if is_shown else {"ready"})

    @pytest.mark.parametrize("key", KEYS)
    def test_every_key_is_accepted(self, key: SecretStr) -> None:
        with client_with(self.AUTH) as client:
            bearer = b"Bearer " + key.get_secret_value().encode()
            answer = client.post("/v1/audio/transcriptions", files={"file": NOISE}, headers={b"Authorization": bearer})
            assert answer.status_code == 200
            assert client.get("/v1/models", headers={b"authorization": bearer.replace(b"Bearer", b"bearer ")}).status_code == 200

    @pytest.mark.parametrize("header", ["first-key", "Basic first-key", "Bearer", "Bearer first-key second-key"])
    def test_another_scheme_is_rejected(self, header: str) -> None:
        with client_with(self.AUTH) as client:
            assert_error(client.get("/v1/models", headers={"Authorization": header}), 401, "invalid_api_key")

    def test_cors_preflights_and_errors_can_be_read_without_a_key(self) -> None:
        origin = {"Origin": "http://page.example", "Access-Control-Request-Method": "POST"}
        with client_with(self.AUTH) as client:
            preflight = client.options(
                "/v1/audio/transcriptions", headers=origin | {"Access-Control-Request-Headers": "authorization"}
            )
            assert preflight.status_code == 200
            assert preflight.headers["access-control-allow-origin"] == "*"
            assert "authorization" in preflight.headers["access-control-allow-headers"].lower()
            assert client.get("/v1/models", headers=origin).headers["access-control-allow-origin"] == "*"

    def test_keys_are_neither_printed_nor_logged(self, caplog: pytest.LogCaptureFixture) -> None:
        settings = Settings(auth=self.AUTH)
        with caplog.at_level(logging.DEBUG), client_with(self.AUTH, "first-key") as client:
            post(client)
        for text in (repr(settings), str(settings), settings.model_dump_json(), caplog.text):
            assert "first-key" not in text


@pytest.mark.parametrize("entry", ["alice: first-key", {"alice": "first-key"}], ids=["text", "pair of YAML"])
def test_the_name_of_a_key_is_logged_and_its_secret_is_not(entry: Any, caplog: pytest.LogCaptureFixture) -> None:
    auth = AuthSettings.model_validate({"keys": [entry]})
    with caplog.at_level(logging.INFO), client_with(auth, "first-key") as client:
        assert post(client).status_code == 200
    assert "POST with the key `alice`" in caplog.text
    assert "first-key" not in caplog.text


@pytest.mark.parametrize("keys", [["alice: sha256:first-key"], [" "], ["alice: first-key", "bob: first-key"]], ids=str)
def test_invalid_keys_are_refused_without_being_shown(keys: list[str]) -> None:
    with pytest.raises(ValidationError) as caught:
        Settings.model_validate({"auth": {"keys": keys}})
    assert "first-key" not in str(caught.value)


def test_seed_bs_variable_sets_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("API_KEY", "one, two,")
    assert [key.get_secret_value() for key in Settings().auth.keys] == ["one", "two"]
    monkeypatch.setenv("API_KEY", "")
    assert Settings().auth.keys == ()


class TestLimitsPerKey:
    """With a fake clock."""

    @staticmethod
    def keys(now: list[float], **limits: int) -> tuple[Keys, str, str]:
        keys = Keys(AuthSettings(keys=KEYS, **limits), lambda: now[0])
        return keys, keys.find("Bearer first-key"), keys.find("Bearer second-key-é".encode().decode("latin-1"))

    def test_requests_a_minute(self) -> None:
        now = [0.0]
        keys, first, second = self.keys(now, max_requests_per_minute=2)
        for at_s, left in ((0.0, "1"), (20.0, "0")):
            now[0] = at_s
            with keys.request(first) as headers:
                assert headers["x-ratelimit-limit-requests"] == "2"
                assert headers["x-ratelimit-remaining-requests"] == left
        now[0] = 30.0
        with pytest.raises(RateLimited) as caught, keys.request(first):
            pass
        assert caught.value.retry_after_s == 30
        with keys.request(second):
            pass
        now[0] = 60.0
        with keys.request(first) as headers:
            assert headers["x-ratelimit-remaining-requests"] == "0"

    def test_requests_at_once(self) -> None:
        keys, first, second = self.keys([0.0], max_requests=2)
        with ExitStack() as in_progress:
            for _ in range(2):
                in_progress.enter_context(keys.request(first))
            with pytest.raises(RateLimited), keys.request(first):
                pass
            with keys.request(second):
                pass
        with keys.request(first):
            pass

    def test_the_keys_of_one_name_count_together(self) -> None:
        keys = Keys(
            AuthSettings(keys=(SecretStr("alice: old"), SecretStr("alice: new"), SecretStr("bob: other")), max_requests=1)
        )
        with keys.request(keys.find("Bearer old")):
            with pytest.raises(RateLimited), keys.request(keys.find("Bearer new")):
                pass
            with keys.request(keys.find("Bearer other")):
                pass

    def test_an_unknown_key(self) -> None:
        keys, _, _ = self.keys([0.0])
        for header in (None, "", "Bearer x", "Bearer ÿ"):
            with pytest.raises(InvalidKey):
                keys.find(header)

    def test_over_http(self) -> None:
        with client_with(AuthSettings(keys=KEYS, max_requests_per_minute=1), "first-key") as client:
            good = post(client)
            assert good.headers["x-ratelimit-remaining-requests"] == "0"
            assert int(good.headers["openai-processing-ms"]) >= 0
            refused = post(client)
            assert_error(refused, 429, "rate_limit_exceeded")
            assert 0 < int(refused.headers["retry-after"]) <= 61
            assert client.get("/v1/models").status_code == 200
