"""The API with the bundled model, and an open Realtime session."""

from collections.abc import Iterator

import pytest
from fastapi.testclient import TestClient

from serve_app.engine.parakeet import ParakeetEngine
from testing.digit_strings import DigitString
from testing.fake_service import EngineService
from testing.realtime_client import URL, Talk


@pytest.fixture
def server(engine: ParakeetEngine) -> EngineService:
    return EngineService(engine)


@pytest.fixture
def session(client: TestClient) -> Iterator[Talk]:
    with client.websocket_connect(URL) as socket:
        yield Talk(socket)


@pytest.fixture(scope="module")
def text(spoken: list[DigitString]) -> str:
    return " ".join(string.text for string in spoken)
