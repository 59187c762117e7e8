"""WebSocket clients that misbehave. Attempts tell what they got, if that is not what they deserve."""

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import websockets

from serve_app.window import SAMPLE_RATE
from testing.soak.target import ANSWER_S, DEAF_S, LONG_S, SIMULATED, Attempt, Target, pieces, small_socket, websocket

MESSAGE_S = 0.24
"""Audio per message of a live stream, seconds."""

WRONG: Sequence[tuple[Sequence[str | bytes], str, int]] = (
    (["{"], "invalid_request", 1007),
    ([json.dumps({"channels": "many"})], "invalid_request", 1007),
    ([json.dumps({"model": "none"})], "model_not_found", 1008),
    ([json.dumps({"media": True}), random.Random(2).randbytes(5000), "END"], "invalid_audio", 1003),
    ([json.dumps({"format": "base64"}), "no base64!"], "invalid_request", 1007),
)
"""Messages, and the error and close code that they deserve."""


async def deaf_stream(target: Target, rng: random.Random) -> str:
    """A file, or live speech, over a WebSocket that is never read."""
    if rng.random() < 0.5:
        messages, config = pieces(target.long, 20), dict[str, Any](media=True)
    else:
        speech = target.speech[: round(LONG_S * SAMPLE_RATE)].tobytes()
        messages, config = pieces(speech, 20), dict[str, Any](encoding="pcm_s16le", interim_results=True)
    async with websocket(target, max_queue=1, sock=small_socket(target)) as socket:
        with suppress(websockets.ConnectionClosed, TimeoutError):
            async with asyncio.timeout(DEAF_S):
                await socket.send(json.dumps({"model": SIMULATED, **config}))
                for message in messages:
                    await socket.send(message)
                await socket.send("END")
        await asyncio.sleep(DEAF_S / 2)
        socket.transport.abort()
    return ""


async def vanishing_stream(target: Target, rng: random.Random) -> str:
    """Live speech at its pace, and then the connection is gone in the middle of it."""
    async with websocket(target) as socket:
        await socket.send(json.dumps({"model": SIMULATED, "encoding": "pcm_s16le", "interim_results": True}))
        step, start = round(MESSAGE_S * SAMPLE_RATE), rng.randrange(len(target.speech) // 2)
        for number in range(rng.randrange(5, 40)):
            await socket.send(target.speech[start + number * step :][:step].tobytes())
            await asyncio.sleep(MESSAGE_S)
        socket.transport.abort()
    return ""


async def silent_stream(target: Target, rng: random.Random) -> str:
    """It stops to speak, and stays."""
    config = {"model": SIMULATED, "encoding": "pcm_s16le"}
    return await _ends(target, [json.dumps(config), target.speech[:SAMPLE_RATE].tobytes()], "stream_idle", 1008)


async def wrong_stream(target: Target, rng: random.Random) -> str:
    return await _ends(target, *rng.choice(WRONG))


async def _ends(target: Target, messages: Sequence[str | bytes], code: str, close: int) -> str:
    """Send these, which the server answers with an error and a close code."""
    codes = list[str]()
    async with websocket(target) as socket:
        with suppress(websockets.ConnectionClosed):
            for message in messages:
                await socket.send(message)
            async with asyncio.timeout(ANSWER_S):
                async for data in socket:
                    message = json.loads(data)
                    if message["type"] == "error":
                        codes.append(message["code"])
    return "" if (codes, socket.close_code) == ([code], close) else f"{codes}, close {socket.close_code}; not {code}, {close}"


STREAMS: Mapping[str, Attempt] = {
    "a WebSocket that does not read": deaf_stream,
    "a live stream that vanishes": vanishing_stream,
    "a live stream that falls silent": silent_stream,
    "a wrong WebSocket": wrong_stream,
}
"""By name."""
