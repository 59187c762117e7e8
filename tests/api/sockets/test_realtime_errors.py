"""OpenAI's Realtime protocol: errors, limits, keys and shutdown."""

import json
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from pydantic import SecretStr
from starlette.websockets import WebSocketDisconnect

from serve_app.api import create_api
from serve_app.api.realtime import PATH, TRANSCRIPTION
from serve_app.cluster.status import ReplicaStatus
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.errors import EngineError
from serve_app.settings import AuthSettings, LiveSettings
from testing.digit_strings import DigitString, to_int16
from testing.fake_service import EngineService
from testing.realtime_client import PAUSE, URL, Talk, kinds, update


class TestErrors:
    @pytest.mark.parametrize(
        ("event", "param"),
        [
            ("not JSON", None),
            ("[1]", None),
            ("[" * 100_000, None),
            ({}, "type"),
            ({"type": "response.create"}, "type"),
            ({"type": "input_audio_buffer.append"}, "audio"),
            ({"type": "input_audio_buffer.append", "audio": "%%%"}, "audio"),
            ({"type": "input_audio_buffer.append", "audio": 7}, "audio"),
            ({"type": "input_audio_buffer.commit"}, None),
            ({"type": "session.update"}, "session"),
            ({"type": "session.update", "session": {"type": "realtime"}}, "session.type"),
            ({"type": "session.update", "session": {"include": ["more"]}}, "session.include.0"),
            (update(transcription={"model": "none"}), "model"),
            (update(transcription={"language": "xx"}), "language"),
            (
                update(turn_detection={"type": "server_vad", "threshold": 2}),
                "session.audio.input.turn_detection.threshold",
            ),
            (update(format={"type": "mp3"}), "session.audio.input.format"),
            (update(format={"type": "audio/pcm", "rate": 1}), "sample_rate"),
        ],
    )
    def test_an_invalid_event_is_rejected_and_the_session_goes_on(
        self, session: Talk, strings: list[DigitString], event: Any, param: str | None
    ) -> None:
        if isinstance(event, dict):
            event["event_id"] = "mine"
        session.socket.send_text(event if isinstance(event, str) else json.dumps(event))
        error = session.error()
        assert (error["type"], error["param"]) == ("invalid_request_error", param)
        assert error["event_id"] == ("mine" if isinstance(event, dict) else None)
        session.speak(np.concatenate([to_int16(strings[5].samples), PAUSE]))
        assert session.until(f"{TRANSCRIPTION}.completed")[-1]["transcript"] == strings[5].text

    def test_keywords_that_the_model_does_not_take(
        self, server: EngineService, session: Talk, strings: list[DigitString]
    ) -> None:
        """They are refused; the phrases of a prompt are dropped."""
        server.replicas["first"] = (ReplicaStatus("a", "ready", takes_keywords=False),)
        session.socket.send_json(update(transcription={"keywords": ["seven"]}))
        error = session.error()
        assert (error["type"], error["param"]) == ("invalid_request_error", "keywords[]")
        updated = session.update(turn_detection=None, transcription={"prompt": "seven, eight"})
        assert updated["audio"]["input"]["transcription"]["keywords"] is None
        session.speak(to_int16(strings[5].samples))
        assert session.commit()[-1]["transcript"] == strings[5].text
        assert {job.keywords for job in server.jobs} == {()}

    def test_the_item_after_a_failed_one_is_transcribed(
        self, server: EngineService, session: Talk, strings: list[DigitString]
    ) -> None:
        session.update(turn_detection=None)
        server.failure = EngineError("It broke.")
        session.speak(to_int16(strings[5].samples))
        session.send("input_audio_buffer.commit")
        failed = session.until(f"{TRANSCRIPTION}.failed")
        assert kinds(failed) == ["committed", "failed"]
        assert failed[-1]["error"]["message"] == "It broke."
        server.failure = None
        session.speak(to_int16(strings[4].samples))
        assert session.commit()[-1]["transcript"] == strings[4].text

    @pytest.mark.parametrize(("url", "param"), [(f"{PATH}?intent=conversation", "intent"), (f"{URL}&model=none", "model")])
    def test_query_parameters(self, client: TestClient, url: str, param: str) -> None:
        with client.websocket_connect(url) as socket:
            error = socket.receive_json()
            assert (error["type"], error["error"]["param"]) == ("error", param)
            with pytest.raises(WebSocketDisconnect):
                socket.receive_json()

    def test_the_utterance_after_a_failed_one_is_transcribed(
        self, server: EngineService, session: Talk, strings: list[DigitString]
    ) -> None:
        server.failure = EngineError("It broke.")
        session.speak(np.concatenate([to_int16(strings[5].samples), PAUSE]))
        session.until(f"{TRANSCRIPTION}.failed")
        server.failure = None
        session.speak(np.concatenate([PAUSE, to_int16(strings[2].samples), PAUSE]))
        while (event := session.until(f"{TRANSCRIPTION}.completed")[-1])["transcript"] != strings[2].text:
            # The rest of the failed utterance, with the case and the full stop of a text of its own.
            assert event["transcript"].rstrip(".").lower() in strings[5].text.lower()

    @pytest.mark.parametrize("event", [{"type": "x" * 10_000}, {"type": "x", "event_id": "y" * 10_000}, {"type": "\ud800"}])
    def test_long_values_are_not_echoed(self, session: Talk, event: dict[str, str]) -> None:
        session.socket.send_text(json.dumps(event))
        assert len(json.dumps(session.error())) < 2_000

    def test_a_silent_client_is_disconnected(self, engine: ParakeetEngine) -> None:
        server = EngineService(engine, live=LiveSettings(config_s=0.2))
        with TestClient(create_api(server.service)) as client, client.websocket_connect(URL) as socket:
            session = Talk(socket)
            assert session.error()["code"] == "stream_idle"
            with pytest.raises(WebSocketDisconnect) as closed:
                socket.receive_json()
            assert closed.value.code == 1008


class TestKeys:
    @pytest.fixture
    def server(self, engine: ParakeetEngine) -> EngineService:
        return EngineService(engine, auth=AuthSettings(keys=(SecretStr("secret"),)))

    def test_none(self, client: TestClient) -> None:
        with client.websocket_connect(URL) as socket:
            assert socket.receive_json()["error"]["code"] == "invalid_api_key"
            with pytest.raises(WebSocketDisconnect) as closed:
                socket.receive_json()
            assert closed.value.code == 1008

    def test_as_a_header(self, client: TestClient) -> None:
        with client.websocket_connect(URL, headers={"Authorization": "Bearer secret"}) as socket:
            Talk(socket)

    def test_as_a_subprotocol(self, client: TestClient) -> None:
        with client.websocket_connect(URL, subprotocols=["realtime", "openai-insecure-api-key.secret"]) as socket:
            assert socket.accepted_subprotocol == "realtime"
            Talk(socket)


def test_a_server_that_shuts_down_transcribes_what_it_has_read(
    server: EngineService, session: Talk, strings: list[DigitString]
) -> None:
    session.update(turn_detection=None)
    # A single event, since events that the server has not read before the shutdown are not transcribed.
    session.speak(np.concatenate([to_int16(strings[5].samples), PAUSE]), frame_bytes=10**6)
    session.until(f"{TRANSCRIPTION}.delta")
    server.service.admission.close()
    assert session.until(f"{TRANSCRIPTION}.completed")[-1]["transcript"] == strings[5].text
    with pytest.raises(WebSocketDisconnect) as closed:
        session.socket.receive_json()
    assert closed.value.code == 1012
