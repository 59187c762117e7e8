"""OpenAI's Realtime protocol as clients of several ages speak it: the beta's events, OpenAI's model names, commits of silence."""

import json
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient

from serve_app.api.realtime import TRANSCRIPTION
from serve_app.api.realtime_config import SessionConfig
from serve_app.api.websocket_connection import MAX_MESSAGE_CHARS
from serve_app.window import SAMPLE_RATE
from testing.digit_strings import DigitString, to_int16
from testing.fake_service import EngineService
from testing.realtime_client import PAUSE, Talk, kinds, noise, noisy, transcripts, update
from testing.seed_socket_client import RAW, transcribed

WITHOUT_VAD = {"audio": {"input": {"transcription": {"model": "gpt-realtime-whisper"}}}}
BETA_SESSION = {
    "input_audio_format": "g711_ulaw",
    "input_audio_transcription": {"model": "first", "language": "en", "prompt": "seven, eight"},
    "input_audio_noise_reduction": {"type": "near_field"},
    "turn_detection": {"threshold": 0.4, "silence_duration_ms": 300},
    "include": ["item.input_audio_transcription.logprobs"],
}


class TestBeta:
    def test_an_update(self, server: EngineService, session: Talk, strings: list[DigitString]) -> None:
        updated = session.update_beta(BETA_SESSION)
        assert updated["id"] == session.created["id"]
        assert updated["input_audio_format"] == "g711_ulaw"
        assert updated["input_audio_transcription"]["language"] == "en"
        assert updated["turn_detection"] == {
            "type": "server_vad",
            "threshold": 0.4,
            "prefix_padding_ms": 300,
            "silence_duration_ms": 300,
        }
        assert updated["include"] == BETA_SESSION["include"]
        session.speak(np.concatenate([to_int16(strings[2].samples), PAUSE]), 8_000, "mulaw")
        assert session.until(f"{TRANSCRIPTION}.completed")[-1]["logprobs"]
        assert server.jobs[-1].keywords == ("seven", "eight")

    def test_commits(self, session: Talk, strings: list[DigitString]) -> None:
        assert session.update_beta({"turn_detection": None})["turn_detection"] is None
        session.speak(to_int16(strings[5].samples))
        assert session.commit()[-1]["transcript"] == strings[5].text

    @pytest.mark.parametrize(
        ("changes", "param"),
        [
            (None, "session"),
            ({"input_audio_format": "mp3"}, "session.audio.input.format"),
            ({"input_audio_format": 7}, "session.audio.input.format"),
            ({"turn_detection": {"type": "none"}}, "session.audio.input.turn_detection"),
        ],
    )
    def test_an_invalid_update(self, session: Talk, changes: Any, param: str) -> None:
        session.send("transcription_session.update", session=changes)
        assert session.error()["param"] == param

    def test_an_update_in_the_present_form_is_answered_in_it(self, session: Talk) -> None:
        session.update_beta({"turn_detection": None})
        assert session.update(transcription={"language": "en"})["audio"]["input"]["turn_detection"] is None


class TestModelsWithoutVad:
    def test_turn_detection_is_off_unless_asked_for(self) -> None:
        config = SessionConfig().updated(WITHOUT_VAD)
        assert config.audio.input.turn_detection is None
        assert config.updated({"include": []}).audio.input.turn_detection is None
        asked = config.updated({"audio": {"input": {"turn_detection": {"type": "server_vad"}}}})
        assert asked.updated(WITHOUT_VAD).audio.input.turn_detection is not None

    def test_another_model_has_it(self) -> None:
        other = {"audio": {"input": {"transcription": {"model": "whisper-1"}}}}
        assert SessionConfig().updated(WITHOUT_VAD).updated(other).audio.input.turn_detection is not None


class TestNoInventedWords:
    def test_a_commit_after_the_vad_has_committed(self, session: Talk, strings: list[DigitString]) -> None:
        """The rest of the audio is noise, then digital zeros."""
        session.speak(np.concatenate([noisy(strings[5], SAMPLE_RATE // 2), PAUSE[: SAMPLE_RATE // 2]]))
        assert session.until(f"{TRANSCRIPTION}.completed")[-1]["transcript"] == strings[5].text
        session.speak(noise(SAMPLE_RATE // 5))
        session.send("input_audio_buffer.commit")
        session.send("input_audio_buffer.clear")
        events = session.until("input_audio_buffer.cleared")
        assert transcripts(events) == [""]

    @pytest.mark.parametrize("length_s", [0.15, 0.2, 0.3])
    def test_a_short_turn_without_speech(self, session: Talk, strings: list[DigitString], length_s: float) -> None:
        session.update(turn_detection=None)
        session.speak(noisy(strings[5], SAMPLE_RATE // 5))
        assert session.commit()[-1]["transcript"] == strings[5].text
        session.speak(noise(round(length_s * SAMPLE_RATE)))
        events = session.commit()
        assert kinds(events) == ["committed", "completed"]
        assert events[-1]["transcript"] == ""

    def test_a_microphone_that_is_muted(self, client: TestClient, strings: list[DigitString]) -> None:
        samples = np.concatenate([noisy(strings[5], SAMPLE_RATE), np.zeros(20 * SAMPLE_RATE, np.int16)])
        assert transcribed(client, samples.tobytes(), RAW)[-1]["text"] == strings[5].text


class TestSizes:
    @pytest.mark.parametrize(
        "event",
        [
            update(transcription={"prompt": "a," * MAX_MESSAGE_CHARS}),
            {"type": "conversation.item.create", "audio": "", "item": "x" * MAX_MESSAGE_CHARS},
            {"type": "input_audio_buffer.append", "audio": {}, "more": ["audio"] * MAX_MESSAGE_CHARS},
        ],
        ids=["update", "beside audio", "no audio"],
    )
    def test_a_large_event_is_refused_before_it_is_parsed(
        self, session: Talk, event: dict[str, Any], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        parsed: list[int] = []
        loads = json.loads

        def noted_loads(text: str) -> Any:
            parsed.append(len(text))
            return loads(text)

        monkeypatch.setattr(json, "loads", noted_loads)
        session.socket.send_text(json.dumps(event))
        assert str(MAX_MESSAGE_CHARS) in session.socket.receive()["text"]
        assert max(parsed, default=0) <= MAX_MESSAGE_CHARS
