"""`chunking_strategy`: the windows of a request."""

import numpy as np
import pytest
from fastapi.testclient import TestClient

from testing import media
from testing.fake_service import FakeService, assert_error, post

LONG = media.wav(np.random.default_rng(1).normal(0, 0.1, 70 * 8_000), 8_000, "ALAW")


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"chunking_strategy": "auto"},
        {"chunking_strategy": '{"type": "server_vad", "threshold": 0.5}'},
        {"chunking_strategy[type]": "server_vad", "chunking_strategy[prefix_padding_ms]": "300"},
    ],
)
def test_openais_values_change_nothing(client: TestClient, server: FakeService, fields: dict[str, str]) -> None:
    assert post(client, LONG, **fields).status_code == 200
    assert max(len(window.samples) for window in server.windows) / 16_000 == pytest.approx(32, abs=2)


@pytest.mark.parametrize(
    "fields",
    [
        {"chunking_strategy": '{"window_s": 10, "overlap_s": 3}'},
        {"chunking_strategy[window_s]": "10", "chunking_strategy[overlap_s]": "3"},
    ],
)
def test_a_request_can_choose_its_windows(client: TestClient, server: FakeService, fields: dict[str, str]) -> None:
    text = post(client, LONG).json()["text"]
    server.windows.clear()
    assert post(client, LONG, **fields).json()["text"] == text
    first, second = sorted(server.windows, key=lambda window: window.index)[:2]
    assert len(first.samples) / 16_000 == pytest.approx(10, abs=2)
    assert (first.end_sample - second.start_sample) / 16_000 == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize(
    ("value", "reason"),
    [
        ("vad", "must be"),
        ("[]", "must be"),
        ('{"type": "client_vad"}', "must be"),
        ('{"window": 10}', "no 'window'"),
        ('{"window_s": "x"}', "numbers"),
        ('{"window_s": 1}', "window_s is wrong"),
        ('{"window_s": 64}', "at most 32"),
        ('{"window_s": 10, "overlap_s": 6}', "at most half"),
        ('{"window_s": NaN}', "wrong"),
        ('{"window_s": 1' + 400 * "0" + "}", "numbers"),
        ('{"\\ud800": 1}', "no '"),
        ("[" * 30_000, "must be"),
    ],
)
def test_invalid_strategies_are_explained(client: TestClient, value: str, reason: str) -> None:
    message = assert_error(post(client, chunking_strategy=value), 400, "invalid_request", "chunking_strategy")
    assert reason in message
