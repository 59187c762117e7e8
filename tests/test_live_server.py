"""Live streams against the running server, by the websockets library: at the pace of speech, and through a replica's death."""

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import psutil
import pytest
import websockets
from websockets.asyncio.client import ClientConnection

from serve_app.api.websocket import PATH
from serve_app.transcript import SAMPLE_RATE, Samples
from tests.server import ROOT, Server, serve_run
from tools.digit_strings import DigitString

pytestmark = [pytest.mark.serve, pytest.mark.slow]

FRAME_S = 0.1
STREAMS = 3
IDLE_STREAMS = 200


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    args = {"live": {"config_s": 5, "max_streams": IDLE_STREAMS + 20}}
    with serve_run(ROOT / "configs" / "demo.yaml", tmp_path_factory.mktemp("live"), args=args) as server:
        server.wait_for_state("digits", "ready")
        yield server


def connect(server: Server) -> Any:
    return websockets.connect(server.url.replace("http", "ws") + PATH, max_size=None)


async def speak(socket: ClientConnection, speech: Samples) -> None:
    """Send a recording at the pace of speech."""
    await socket.send(json.dumps({"encoding": "pcm_s16le", "interim_results": True}))
    step = round(FRAME_S * SAMPLE_RATE)
    for start in range(0, len(speech), step):
        await socket.send(speech[start : start + step].tobytes())
        await asyncio.sleep(FRAME_S)
    await socket.send("END")


async def listen(socket: ClientConnection) -> list[dict[str, Any]]:
    messages = [json.loads(message) async for message in socket]
    assert socket.close_code == 1000
    return messages


async def stream(server: Server, speech: Samples) -> list[dict[str, Any]]:
    async with connect(server) as socket:
        speaking = asyncio.create_task(speak(socket, speech))
        messages = await listen(socket)
        await speaking
    return messages


def check_finals(messages: list[dict[str, Any]], text: str) -> None:
    """Final words never change, and are all there once."""
    said: list[str] = []
    seen: list[str] = []
    for message in messages[:-1]:
        if message["type"] == "segment":
            said += message["text"].split()
        words = [word["word"] for word in message["words"] if word.get("is_final")] if message["type"] == "partial" else []
        final = said + words
        length = min(len(final), len(seen))
        assert final[:length] == seen[:length]
        seen = max(seen, final, key=len)
    assert " ".join(said) == messages[-1]["text"] == text


async def test_streams_at_the_pace_of_speech(server: Server, speech: Samples, spoken: list[DigitString]) -> None:
    text = " ".join(string.text for string in spoken)
    for messages in await asyncio.gather(*(stream(server, speech) for _ in range(STREAMS))):
        check_finals(messages, text)
        assert sum(message["type"] == "partial" for message in messages) > 10


async def test_a_replica_that_dies_in_mid_stream(server: Server, speech: Samples, spoken: list[DigitString]) -> None:
    listening = asyncio.create_task(stream(server, speech))
    await asyncio.sleep(len(speech) / SAMPLE_RATE / 3)
    (replica,) = server.processes("model digits")
    replica.kill()
    check_finals(await listening, " ".join(string.text for string in spoken))
    assert server.processes("model digits") != [replica]


async def test_connections_that_say_nothing_are_closed_and_disturb_nobody(
    server: Server, speech: Samples, spoken: list[DigitString]
) -> None:
    (ingress,) = server.processes("ingress")
    before = connections(ingress)
    idle = await asyncio.gather(*(connect(server) for _ in range(IDLE_STREAMS)))
    gone = await asyncio.gather(*(connect(server) for _ in range(10)))
    for socket in gone:
        await socket.send(speech[:8_000].tobytes())
        socket.transport.abort()
    check_finals(await stream(server, speech), " ".join(string.text for string in spoken))
    for socket in idle:
        error = json.loads(await socket.recv())
        assert error["code"] == "stream_idle"
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1008
    assert connections(ingress) <= before + 2


def connections(process: psutil.Process) -> int:
    return len(process.net_connections())
