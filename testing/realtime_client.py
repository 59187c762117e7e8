"""A client of the Realtime protocol. It validates every event with the types of OpenAI's client."""

import base64
from typing import Any

import numpy as np
import pytest
import soxr
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter
from starlette.testclient import WebSocketTestSession

from serve_app.api.realtime import PATH, TRANSCRIPTION
from serve_app.window import SAMPLE_RATE, Samples
from testing import media

URL = f"{PATH}?intent=transcription"
EVENTS: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
PAUSE = np.zeros(SAMPLE_RATE, np.int16)


class Talk:
    """An open session, which sends and receives events as OpenAI's client does."""

    def __init__(self, socket: WebSocketTestSession) -> None:
        self.socket = socket
        self.created = self.until("session.created")[-1]["session"]

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send_json({"type": kind, **fields})

    def update(self, **audio_input: Any) -> dict[str, Any]:
        self.socket.send_json(update(**audio_input))
        return dict(self.until("session.updated")[-1]["session"])

    def speak(self, samples: Samples, rate: int = 24_000, encoding: Any = "pcm_s16le", frame_bytes: int = 9_601) -> None:
        """Send samples, int16 [samples] at 16 kHz, in frames that may split a sample."""
        data = media.pcm(soxr.resample(samples / 32768, SAMPLE_RATE, rate).astype(np.float32), encoding)
        for start in range(0, len(data), frame_bytes):
            self.send("input_audio_buffer.append", audio=base64.b64encode(data[start : start + frame_bytes]).decode())

    def until(self, kind: str) -> list[dict[str, Any]]:
        """Events up to and including the next of that type."""
        events: list[dict[str, Any]] = []
        while not events or events[-1]["type"] != kind:
            events.append(self.socket.receive_json())
            if not is_of_another_rate(events[-1]):
                EVENTS.validate_python(events[-1])
            if events[-1]["type"] == "error" != kind:
                pytest.fail(str(events[-1]))
        return events

    def error(self) -> dict[str, Any]:
        return dict(self.until("error")[-1]["error"])

    def commit(self) -> list[dict[str, Any]]:
        self.send("input_audio_buffer.commit")
        return self.until(f"{TRANSCRIPTION}.completed")


def update(**audio_input: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": "transcription", "audio": {"input": audio_input}}}


def is_of_another_rate(event: dict[str, Any]) -> bool:
    """Whether the event names a sample rate that OpenAI's types do not allow: they have PCM of 24 kHz only."""
    return bool(event["type"] == "session.updated" and event["session"]["audio"]["input"]["format"].get("rate", 24_000) != 24_000)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The types in order; successive deltas count as one."""
    names = [event["type"].rpartition(".")[2] for event in events]
    return [name for name, previous in zip(names, ["", *names], strict=False) if (name, previous) != ("delta", "delta")]
