"""Decoder processes of the running server."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import websockets.sync.client

from serve_app.api.websocket import PATH
from testing import media
from testing.digit_strings import DigitString, with_pauses
from testing.server import Server

pytestmark = [pytest.mark.serve]


def test_a_killed_decoder_is_noticed_by_nobody(server: Server, strings: list[DigitString]) -> None:
    """While one file is half sent, and eight others are decoded."""
    data = media.wav(with_pauses(strings))
    text, half, before = server.transcribe(data).json()["text"], len(data) // 2, server.decoders()
    with (
        websockets.sync.client.connect(server.url.replace("http", "ws") + PATH, max_size=None) as socket,
        ThreadPoolExecutor(8) as pool,
    ):
        socket.send(data[:half])
        messages = [json.loads(socket.recv())]
        others = [pool.submit(server.transcribe, data) for _ in range(8)]
        for process in before:
            process.kill()
        socket.send(data[half:])
        socket.send("END")
        messages += [json.loads(message) for message in socket]
        assert messages[-1]["text"] == text
        assert [other.result().json()["text"] for other in others] == [text] * 8
    assert len(server.decoders()) == len(before)
    assert not {process.pid for process in before} & {process.pid for process in server.decoders()}
