"""openai-agents: its speech-to-text model, which uses the Realtime API, with its defaults."""

import asyncio
import sys

from agents.voice import StreamedAudioInput, STTModelSettings
from agents.voice.models.openai_stt import OpenAISTTModel
from openai import AsyncOpenAI
from pcm import FRAME_S, frames


async def main(url: str, path: str) -> None:
    audio = StreamedAudioInput()
    model = OpenAISTTModel("gpt-4o-transcribe", AsyncOpenAI(base_url=f"{url}/v1", api_key="any"))
    session = await model.create_session(audio, STTModelSettings(), False, False)

    async def speak() -> None:
        for frame in frames(path):
            await audio.add_audio(frame)
            await asyncio.sleep(FRAME_S)
        await audio.add_audio(None)

    speaking = asyncio.create_task(speak())
    print(" ".join([turn async for turn in session.transcribe_turns()]))
    await speaking
    await session.close()


asyncio.run(main(*sys.argv[1:]))
