"""Realtime sessions with which clients of other projects had trouble, on the running server."""

from typing import Any

import numpy as np
import pytest

from serve_app.api.realtime import TRANSCRIPTION
from serve_app.window import SAMPLE_RATE, Samples
from testing.digit_strings import DigitString, to_int16, with_pauses
from testing.realtime_client import PAUSE, Talk, kinds, noise, noisy, talk, transcripts, update
from testing.server import Server
from testing.streams import REALTIME, connect, until_closed

pytestmark = [pytest.mark.serve]

FRAME_BYTES = 4_800
"""An event of audio, 0.1 s."""

OTHER_NAMES = ["whisper-1", "gpt-4o-transcribe", "gpt-4o-mini-transcribe", "gpt-transcribe", "gpt-realtime", "gpt-realtime-mini"]
"""Names that clients have by default or in their code, of models that end utterances by VAD."""

NAMES_WITHOUT_VAD = ["gpt-realtime-whisper", "gpt-live-transcribe"]


@pytest.fixture(scope="module")
def string(strings: list[DigitString]) -> DigitString:
    return strings[5]


@pytest.fixture(scope="module")
def pair(strings: list[DigitString]) -> Samples:
    """Two strings with a pause after each, int16 [samples]."""
    return with_pauses(strings[2:4])


def words(events: list[dict[str, Any]]) -> list[str]:
    """The words of all items, in lower case: a turn begins a sentence."""
    return " ".join(transcripts(events)).lower().replace(".", "").split()


def end_of_input(session: Talk) -> list[dict[str, Any]]:
    """The events up to the answer to a commit and a clear. The commit may fail because the VAD has committed everything."""
    session.send("input_audio_buffer.commit")
    session.send("input_audio_buffer.clear")
    events: list[dict[str, Any]] = []
    while not events or events[-1]["type"] != "input_audio_buffer.cleared":
        events.append(session.socket.receive_json())
    assert {event["error"]["code"] for event in events if event["type"] == "error"} <= {"input_audio_buffer_commit_empty"}
    return events


class TestNoInventedWords:
    def test_a_commit_after_the_vad_has_committed(self, server: Server, string: DigitString) -> None:
        with talk(server) as session:
            session.speak(np.concatenate([noisy(string, SAMPLE_RATE // 2), PAUSE[: SAMPLE_RATE // 2]]))
            assert transcripts(session.until(f"{TRANSCRIPTION}.completed")) == [string.text]
            session.speak(noise(SAMPLE_RATE // 5))
            assert transcripts(end_of_input(session)) == [""]

    @pytest.mark.parametrize("zeros_s", [0.6, 1.0, 3.0])
    @pytest.mark.parametrize("detection", [{"type": "semantic_vad"}, {"type": "server_vad"}], ids=["semantic", "server"])
    def test_the_end_of_input_after_digital_zeros(
        self, server: Server, string: DigitString, detection: dict[str, str], zeros_s: float
    ) -> None:
        """As openai-agents does at the end of its input, here of a microphone that was muted soon after the speech."""
        speech, zeros = noisy(string, round(0.8 * SAMPLE_RATE)), np.zeros(round(zeros_s * SAMPLE_RATE), np.int16)
        with talk(server, model="gpt-4o-transcribe") as session:
            session.update(turn_detection=detection)
            session.speak(np.concatenate([speech, zeros]), frame_bytes=FRAME_BYTES)
            assert words(end_of_input(session)) == string.text.lower().replace(".", "").split()


class TestBeta:
    def test_an_update(self, server: Server, string: DigitString) -> None:
        with talk(server) as session:
            updated = session.update_beta(
                {
                    "input_audio_format": "g711_ulaw",
                    "input_audio_transcription": {"model": "gpt-4o-mini-transcribe", "language": "eng", "prompt": ""},
                    "input_audio_noise_reduction": {"type": "near_field"},
                    "turn_detection": {"type": "server_vad", "threshold": 0.5, "silence_duration_ms": 1_500},
                }
            )
            assert (updated["id"], updated["input_audio_format"]) == (session.created["id"], "g711_ulaw")
            assert updated["turn_detection"]["silence_duration_ms"] == 1_500
            session.speak(np.concatenate([to_int16(string.samples), PAUSE, PAUSE]), 8_000, "mulaw")
            assert transcripts(session.until(f"{TRANSCRIPTION}.completed")) == [string.text]

    def test_a_client_that_commits(self, server: Server, string: DigitString) -> None:
        with talk(server) as session:
            assert session.update_beta({"turn_detection": None})["turn_detection"] is None
            session.speak(to_int16(string.samples))
            assert transcripts(session.commit()) == [string.text]


class TestNamesOfModels:
    @pytest.mark.parametrize("name", OTHER_NAMES)
    def test_in_the_address(self, server: Server, strings: list[DigitString], name: str) -> None:
        with talk(server, model=name) as session:
            assert session.created["audio"]["input"]["turn_detection"]["type"] == "server_vad"
            session.speak(np.concatenate([to_int16(strings[2].samples), PAUSE]))
            assert transcripts(session.until(f"{TRANSCRIPTION}.completed")) == [strings[2].text]

    @pytest.mark.parametrize("is_in_address", [True, False], ids=["in the address", "in an update"])
    @pytest.mark.parametrize("name", NAMES_WITHOUT_VAD)
    def test_models_without_vad(
        self, server: Server, strings: list[DigitString], pair: Samples, name: str, is_in_address: bool
    ) -> None:
        """Their clients commit by a VAD of their own; pauses end no utterance."""
        with talk(server, **({"model": name} if is_in_address else {})) as session:
            fields = session.created if is_in_address else session.update(transcription={"model": name})
            assert fields["audio"]["input"]["turn_detection"] is None
            session.speak(pair)
            events = session.commit()
            assert kinds(events).count("committed") == 1
            assert words(events) == f"{strings[2].text} {strings[3].text}".lower().replace(".", "").split()
            session.speak(noise(SAMPLE_RATE // 5))
            assert transcripts(session.commit()) == [""]

    async def test_an_unknown_one_in_the_address(self, server: Server) -> None:
        async with connect(server, f"{REALTIME}&model=none") as socket:
            (error,) = [event["error"] for event in await until_closed(socket, 1008)]
        assert (error["code"], error["param"]) == ("model_not_found", "model")

    def test_an_unknown_one_in_an_update(self, server: Server, string: DigitString) -> None:
        with talk(server) as session:
            session.socket.send_json(update(transcription={"model": "none"}))
            error = session.error()
            assert (error["code"], error["param"]) == ("model_not_found", "model")
            session.speak(np.concatenate([to_int16(string.samples), PAUSE]))
            assert transcripts(session.until(f"{TRANSCRIPTION}.completed")) == [string.text]
