"""OpenAI's Realtime protocol on the bundled model: utterances by VAD and by commit, and the configuration of a session."""

import math
from typing import Any

import numpy as np
import pytest

from serve_app.api.realtime import TRANSCRIPTION
from serve_app.api.realtime_config import SessionConfig
from serve_app.live.endpointing import Endpointing
from serve_app.window import SAMPLE_RATE, Samples
from testing.digit_strings import DigitString, to_int16
from testing.fake_service import EngineService
from testing.realtime_client import PAUSE, Talk, kinds


class TestServerVad:
    def test_utterances_become_items(self, session: Talk, spoken: list[DigitString], speech: Samples) -> None:
        session.speak(speech)
        text, said, last = "", [word for string in spoken for word in string.words], ""
        while len(text.split()) < len(said):
            events = session.until(f"{TRANSCRIPTION}.completed")
            assert [kind for kind in kinds(events) if kind != "delta"] == [
                *("speech_started", "speech_stopped", "committed", "completed")
            ]
            (item_id,) = {event["item_id"] for event in events}
            completed = events[-1]
            assert "".join(event["delta"] for event in events if "delta" in event) == completed["transcript"]
            assert completed["usage"]["type"] == "duration"
            committed = next(event for event in events if "previous_item_id" in event)
            assert committed["previous_item_id"] == (last or None)
            last, text = item_id, f"{text} {completed['transcript']}".strip()
        assert text == " ".join(string.text for string in spoken)

    def test_times(self, session: Talk, strings: list[DigitString]) -> None:
        words = strings[0].words
        session.speak(np.concatenate([PAUSE, to_int16(strings[0].samples), PAUSE]))
        events = session.until(f"{TRANSCRIPTION}.completed")
        started, stopped = (next(e[name] for e in events if name in e) for name in ("audio_start_ms", "audio_end_ms"))
        assert started == pytest.approx(1000 + words[0].start_sample / 16 - 300, abs=200)
        assert stopped == pytest.approx(1000 + words[-1].end_sample / 16 + 500, abs=300)

    def test_silence_duration(self, session: Talk, spoken: list[DigitString], speech: Samples) -> None:
        session.update(turn_detection={"type": "server_vad", "silence_duration_ms": 30_000})
        session.speak(speech)
        session.send("input_audio_buffer.commit")
        events = session.until(f"{TRANSCRIPTION}.completed")
        assert events[-1]["transcript"] == " ".join(string.text for string in spoken)
        assert kinds(events).count("speech_started") == 1

    def test_semantic_vad_ends_utterances_by_silence(self, session: Talk, spoken: list[DigitString], speech: Samples) -> None:
        updated = session.update(turn_detection={"type": "semantic_vad", "eagerness": "high"})
        assert updated["audio"]["input"]["turn_detection"] == {"type": "semantic_vad", "eagerness": "high"}
        session.speak(speech)
        assert spoken[0].text.startswith(session.until(f"{TRANSCRIPTION}.completed")[-1]["transcript"])

    def test_all_in_one_append(self, session: Talk, spoken: list[DigitString], speech: Samples) -> None:
        session.speak(speech, frame_bytes=10_000_000)
        text, ends = "", [0]
        while len(text.split()) < sum(len(string.words) for string in spoken):
            events = session.until(f"{TRANSCRIPTION}.completed")
            started, stopped = (next(e[name] for e in events if name in e) for name in ("audio_start_ms", "audio_end_ms"))
            assert ends[-1] <= started < stopped
            assert events[-1]["usage"]["seconds"] == pytest.approx((stopped - started) / 1000, abs=0.2)
            text, ends = f"{text} {events[-1]['transcript']}".strip(), [*ends, stopped]
        assert text == " ".join(string.text for string in spoken)

    def test_a_commit_during_speech(self, session: Talk, spoken: list[DigitString]) -> None:
        samples = to_int16(spoken[0].samples)
        middle = (spoken[0].words[0].end_sample + spoken[0].words[1].start_sample) // 2
        session.speak(samples[:middle])
        events = session.commit()
        session.speak(np.concatenate([samples[middle:], PAUSE, PAUSE]))
        session.send("input_audio_buffer.commit")
        events += session.until(f"{TRANSCRIPTION}.completed")
        assert kinds(events).count("committed") == kinds(events).count("completed") == 2
        assert "speech_stopped" not in kinds(events)
        text = " ".join(event["transcript"] for event in events if "transcript" in event)
        assert text.lower().replace(".", "") == spoken[0].text.lower().replace(".", "")


class TestManual:
    @pytest.fixture
    def session(self, session: Talk) -> Talk:
        assert session.update(turn_detection=None)["audio"]["input"]["turn_detection"] is None
        return session

    def test_commits_become_items(self, session: Talk, strings: list[DigitString]) -> None:
        for string in strings[4:7]:
            session.speak(to_int16(string.samples))
            events = session.commit()
            assert set(kinds(events)) == {"committed", "delta", "completed"}
            assert len({event["item_id"] for event in events}) == 1
            assert events[-1]["transcript"] == string.text
            assert events[-1]["usage"]["seconds"] == pytest.approx(len(string.samples) / SAMPLE_RATE, abs=0.01)

    def test_several_commits_before_the_first_text(self, session: Talk, strings: list[DigitString]) -> None:
        for string in strings[4:7]:
            session.speak(to_int16(string.samples))
            session.send("input_audio_buffer.commit")
        for string in strings[4:7]:
            assert session.until(f"{TRANSCRIPTION}.completed")[-1]["transcript"] == string.text

    def test_clear(self, session: Talk, strings: list[DigitString]) -> None:
        session.speak(to_int16(strings[5].samples))
        session.send("input_audio_buffer.clear")
        session.until("input_audio_buffer.cleared")
        session.send("input_audio_buffer.commit")
        assert session.error()["code"] == "input_audio_buffer_commit_empty"
        session.speak(to_int16(strings[4].samples))
        assert session.commit()[-1]["transcript"] == strings[4].text

    def test_silence_is_an_empty_transcript(self, session: Talk) -> None:
        session.speak(PAUSE)
        assert session.commit()[-1]["transcript"] == ""

    @pytest.mark.parametrize("rate", [8_000, 16_000, 24_000, 48_000])
    def test_rates(self, session: Talk, strings: list[DigitString], rate: int) -> None:
        audio = session.update(format={"type": "audio/pcm", "rate": rate})["audio"]["input"]["format"]
        assert audio == {"type": "audio/pcm", "rate": rate}
        session.speak(to_int16(strings[5].samples), rate)
        assert session.commit()[-1]["transcript"] == strings[5].text

    @pytest.mark.parametrize(("kind", "encoding"), [("audio/pcmu", "mulaw"), ("audio/pcma", "alaw")])
    def test_telephone_encodings(self, session: Talk, strings: list[DigitString], kind: str, encoding: str) -> None:
        assert session.update(format={"type": kind})["audio"]["input"]["format"] == {"type": kind}
        session.speak(to_int16(strings[5].samples), 8_000, encoding)
        assert session.commit()[-1]["transcript"] == strings[5].text

    def test_an_update_first_completes_the_audio_before_it(self, session: Talk, strings: list[DigitString]) -> None:
        session.speak(to_int16(strings[5].samples))
        session.send("session.update", session={"audio": {"input": {"transcription": {"language": "en"}}}})
        events = session.until("session.updated")
        assert kinds(events) == ["delta", "committed", "completed", "updated"]
        assert events[-2]["transcript"] == strings[5].text

    def test_log_probabilities(self, session: Talk, strings: list[DigitString]) -> None:
        session.send("session.update", session={"include": ["item.input_audio_transcription.logprobs"]})
        session.until("session.updated")
        session.speak(to_int16(strings[5].samples))
        completed = session.commit()[-1]
        assert "".join(entry["token"] for entry in completed["logprobs"]).strip() == completed["transcript"]


def test_the_session_reports_its_configuration(session: Talk) -> None:
    assert session.created["type"] == "transcription"
    assert session.created["object"] == "realtime.transcription_session"
    before = session.created["audio"]["input"]
    assert before["format"] == {"type": "audio/pcm", "rate": 24_000}
    assert before["transcription"]["model"] == "first"
    assert before["turn_detection"]["silence_duration_ms"] == 500
    after = session.update(turn_detection={"type": "server_vad", "threshold": 0.7}, transcription={"delay": "minimal"})
    assert after["id"] == session.created["id"]
    assert after["audio"]["input"]["turn_detection"] == {**before["turn_detection"], "threshold": 0.7}
    assert after["audio"]["input"]["transcription"] == {**before["transcription"], "delay": "minimal"}
    after = session.update(transcription=None, noise_reduction={"type": "near_field"})
    assert after["audio"]["input"]["noise_reduction"] is None


@pytest.mark.parametrize(
    ("audio_input", "silence_s", "threshold", "right_context_scale"),
    [
        ({}, 0.5, 0.5, 1.0),
        ({"turn_detection": None}, math.inf, 0.5, 1.0),
        ({"turn_detection": {"type": "server_vad", "silence_duration_ms": 250, "threshold": 0.8}}, 0.25, 0.8, 1.0),
        ({"turn_detection": {"type": "semantic_vad"}, "transcription": {"delay": "minimal"}}, 1.0, 0.5, 0.25),
        ({"turn_detection": {"type": "semantic_vad", "eagerness": "low"}, "transcription": {"delay": "xhigh"}}, 2.0, 0.5, 4.0),
    ],
)
def test_meaning_of_the_configuration(
    audio_input: dict[str, Any], silence_s: float, threshold: float, right_context_scale: float
) -> None:
    config = SessionConfig().updated({"audio": {"input": audio_input}})
    assert config.endpointing == Endpointing(silence_s, threshold)
    assert config.right_context_scale == right_context_scale


def test_keywords_reach_the_model(server: EngineService, session: Talk, spoken: list[DigitString]) -> None:
    session.update(turn_detection=None, transcription={"keywords": ["seven"], "prompt": "eight, nine"})
    session.speak(to_int16(spoken[0].samples))
    session.commit()
    assert server.jobs[-1].keywords == ("seven", "eight", "nine")
