"""livekit-agents: a file, or live with the VAD of the server or its own, as the model's name says."""

import asyncio
import sys

import aiohttp
from livekit import rtc
from livekit.agents import stt
from livekit.agents.utils import http_context
from livekit.plugins import openai
from pcm import FRAME_S, RATE, frames

TRAIL_S = 3.0
"""Time for the last text to arrive, seconds."""


async def main(url: str, path: str, model: str, mode: str) -> None:
    async with aiohttp.ClientSession() as session:
        http_context._ContextVar.set(lambda: session)
        service = openai.STT(base_url=f"{url}/v1", api_key="any", model=model, use_realtime=mode == "live")
        pieces = [rtc.AudioFrame(frame.tobytes(), RATE, 1, len(frame)) for frame in frames(path)]
        print(await (live(service, pieces) if mode == "live" else file(service, pieces)))


async def file(service: openai.STT, pieces: list[rtc.AudioFrame]) -> str:
    return (await service.recognize(pieces)).alternatives[0].text


async def live(service: openai.STT, pieces: list[rtc.AudioFrame]) -> str:
    stream, said = service.stream(), []

    async def listen() -> None:
        async for event in stream:
            if event.type == stt.SpeechEventType.FINAL_TRANSCRIPT:
                said.append(event.alternatives[0].text)

    listening = asyncio.create_task(listen())
    for piece in pieces:
        stream.push_frame(piece)
        await asyncio.sleep(FRAME_S)
    await asyncio.sleep(TRAIL_S)
    listening.cancel()
    return " ".join(said)


asyncio.run(main(*sys.argv[1:]))
