"""pipecat: its service for OpenAI's Realtime API in a pipeline, with the VAD of the server."""

import asyncio
import sys
import warnings

from loguru import logger
from pcm import FRAME_S, RATE, frames
from pipecat.frames.frames import EndFrame, Frame, InputAudioRawFrame, TranscriptionFrame
from pipecat.pipeline.pipeline import Pipeline
from pipecat.pipeline.runner import PipelineRunner
from pipecat.pipeline.task import PipelineParams, PipelineTask
from pipecat.processors.frame_processor import FrameDirection, FrameProcessor
from pipecat.services.openai.stt import OpenAIRealtimeSTTService

START_S = 1.0
"""Time for the connection to be ready, seconds."""

TRAIL_S = 3.0
"""Time for the last text to arrive, seconds."""

logger.remove()
warnings.simplefilter("ignore", DeprecationWarning)


class Listener(FrameProcessor):
    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    async def process_frame(self, frame: Frame, direction: FrameDirection) -> None:
        await super().process_frame(frame, direction)
        if isinstance(frame, TranscriptionFrame):
            self.said.append(frame.text)
        await self.push_frame(frame, direction)


async def main(url: str, path: str) -> None:
    address = url.replace("http", "ws") + "/v1/realtime"
    service = OpenAIRealtimeSTTService(api_key="any", base_url=address, turn_detection={"type": "server_vad"})
    listener = Listener()
    task = PipelineTask(Pipeline([service, listener]), params=PipelineParams(audio_in_sample_rate=RATE))

    async def speak() -> None:
        await asyncio.sleep(START_S)
        for frame in frames(path):
            await task.queue_frame(InputAudioRawFrame(frame.tobytes(), RATE, 1))
            await asyncio.sleep(FRAME_S)
        await asyncio.sleep(TRAIL_S)
        await task.queue_frame(EndFrame())

    await asyncio.gather(speak(), PipelineRunner(handle_sigint=False).run(task))
    print(" ".join(listener.said))


asyncio.run(main(*sys.argv[1:]))
