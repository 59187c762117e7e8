"""A client of the Realtime protocol. It validates every event with the types of OpenAI's client."""

import base64
import contextlib
import json
from collections.abc import Iterator, MutableMapping
from typing import Any, Protocol

import numpy as np
import pytest
import soxr
import websockets.sync.client
from openai.types.beta.realtime.transcription_session_update import Session
from openai.types.realtime import RealtimeServerEvent
from pydantic import TypeAdapter

from serve_app.api.realtime import PATH, TRANSCRIPTION
from serve_app.window import SAMPLE_RATE, Samples
from testing import media
from testing.digit_strings import DigitString, to_int16
from testing.server import Server

URL = f"{PATH}?intent=transcription"
EVENTS: TypeAdapter[Any] = TypeAdapter(RealtimeServerEvent)
PAUSE = np.zeros(SAMPLE_RATE, np.int16)


class Socket(Protocol):
    """What a session needs of a connection: the methods of Starlette's WebSocketTestSession."""

    def send_text(self, data: str) -> None: ...

    def send_json(self, data: Any) -> None: ...

    def receive(self) -> MutableMapping[str, Any]: ...

    def receive_json(self) -> Any: ...


class _ServerSocket:
    """A connection to a running server, as a Socket."""

    def __init__(self, connection: websockets.sync.client.ClientConnection) -> None:
        self._connection = connection

    def send_text(self, data: str) -> None:
        self._connection.send(data)

    def send_json(self, data: Any) -> None:
        self._connection.send(json.dumps(data))

    def receive(self) -> MutableMapping[str, Any]:
        return {"type": "websocket.send", "text": self._connection.recv()}

    def receive_json(self) -> Any:
        return json.loads(self._connection.recv())


class Talk:
    """An open session, which sends and receives events as OpenAI's client does."""

    def __init__(self, socket: Socket) -> None:
        self.socket = socket
        self.created = self.until("session.created")[-1]["session"]

    def send(self, kind: str, **fields: Any) -> None:
        self.socket.send_json({"type": kind, **fields})

    def update(self, **audio_input: Any) -> dict[str, Any]:
        self.socket.send_json(update(**audio_input))
        return dict(self.until("session.updated")[-1]["session"])

    def update_beta(self, changes: dict[str, Any]) -> dict[str, Any]:
        """Update the session as clients of the beta do; the answer is validated with the types of that time."""
        self.send("transcription_session.update", session=changes)
        while (event := self.socket.receive_json())["type"] != "transcription_session.updated":
            assert event["type"] != "error", event
        # These know the names of three models only.
        transcription = {**event["session"]["input_audio_transcription"], "model": "whisper-1"}
        Session.model_validate({**event["session"], "input_audio_transcription": transcription}, strict=True)
        return dict(event["session"])

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


@contextlib.contextmanager
def talk(server: Server, **query: str) -> Iterator[Talk]:
    """A session with a running server."""
    address = server.url.replace("http", "ws") + URL + "".join(f"&{name}={value}" for name, value in query.items())
    with websockets.sync.client.connect(address, max_size=None) as connection:
        yield Talk(_ServerSocket(connection))


def update(**audio_input: Any) -> dict[str, Any]:
    return {"type": "session.update", "session": {"type": "transcription", "audio": {"input": audio_input}}}


def is_of_another_rate(event: dict[str, Any]) -> bool:
    """Whether the event names a sample rate that OpenAI's types do not allow: they have PCM of 24 kHz only."""
    return bool(event["type"] == "session.updated" and event["session"]["audio"]["input"]["format"].get("rate", 24_000) != 24_000)


def kinds(events: list[dict[str, Any]]) -> list[str]:
    """The types in order; successive deltas count as one."""
    names = [event["type"].rpartition(".")[2] for event in events]
    return [name for name, previous in zip(names, ["", *names], strict=False) if (name, previous) != ("delta", "delta")]


def transcripts(events: list[dict[str, Any]]) -> list[str]:
    """The texts of the items that the events complete."""
    return [event["transcript"] for event in events if "transcript" in event]


def noise(samples: int) -> Samples:
    """White noise at -60 dBFS."""
    return np.random.default_rng(0).normal(0, 33, samples).astype(np.int16)


def noisy(string: DigitString, after_samples: int) -> Samples:
    """The string up to the end of its last word, and a pause, with noise over both."""
    spoken = to_int16(string.samples)[: string.words[-1].end_sample]
    padded = np.pad(spoken, (0, after_samples))
    return padded + noise(len(padded))
