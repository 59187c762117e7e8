"""A client of seed A's WebSocket protocol."""

import json
import time
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from numpy.typing import NDArray
from starlette.testclient import WebSocketTestSession
from starlette.websockets import WebSocketDisconnect

from serve_app.api.websocket import PATH
from serve_app.window import Samples

RAW = {"encoding": "pcm_s16le"}
"""Configuration of a stream of raw samples, 16 kHz mono."""


def pieces(data: bytes, size: int = 3_200) -> Iterator[bytes]:
    return (data[start : start + size] for start in range(0, len(data), size))


def until_end(socket: WebSocketTestSession) -> list[dict[str, Any]]:
    """All messages up to the last one."""
    messages: list[dict[str, Any]] = []
    while not messages or messages[-1]["type"] not in ("final_transcription", "error"):
        messages.append(socket.receive_json())
    return messages


def transcribed(client: TestClient, data: bytes, config: dict[str, Any] | None, size: int = 3_200) -> list[dict[str, Any]]:
    """All messages for audio sent in frames of `size` bytes."""
    with client.websocket_connect(PATH) as socket:
        if config is not None:
            socket.send_json(config)
        for piece in pieces(data, size):
            socket.send_bytes(piece)
        socket.send_text("END")
        messages = until_end(socket)
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
        assert closed.value.code == 1000, messages[-1]
    return messages


def failure(client: TestClient, frames: list[Any], code: int) -> dict[str, Any]:
    """The error that the frames cause; asserts the close code."""
    with client.websocket_connect(PATH) as socket:
        for frame in frames:
            if isinstance(frame, bytes):
                socket.send_bytes(frame)
            else:
                socket.send_text(frame if isinstance(frame, str) else json.dumps(frame))
        error = until_end(socket)[-1]
        assert set(error) == {"type", "error", "code", "param"}
        with pytest.raises(WebSocketDisconnect) as closed:
            socket.receive_json()
        assert closed.value.code == code
    return error


def wait_for(condition: Callable[[], bool]) -> None:
    deadline_s = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < deadline_s
        time.sleep(0.01)


def as_floats(samples: Samples) -> NDArray[np.float32]:
    return (samples / 32768).astype(np.float32)
