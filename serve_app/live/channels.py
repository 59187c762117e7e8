"""A live stream whose channels are not mixed: one transcription for each of them, side by side. Pure."""

import asyncio
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import replace

from serve_app.events import Done, LiveEvent, SegmentFinal
from serve_app.tasks import stop
from serve_app.transcript import Segment
from serve_app.window import Samples

MAX_WAITING_BLOCKS = 8
"""Blocks that may wait for one channel. With more, nothing is read, for the other channels neither."""

Transcribe = Callable[[AsyncGenerator[Samples, None]], AsyncGenerator[LiveEvent, None]]
"""Transcribes the audio of one channel, blocks of int16 [samples], while it comes."""

BlockQueue = asyncio.Queue[Samples | None]
"""Blocks of one channel; None: the end."""


async def transcribe_channels(
    audio: AsyncGenerator[Samples, None], channels: int, transcribe: Transcribe
) -> AsyncGenerator[LiveEvent, None]:
    """Transcribe every channel of blocks of int16 [channels, samples] by itself.

    An event comes as soon as its channel has it. So segments are numbered as they come; `Done` has them in the order in which
    they start. Errors of `audio` and of `transcribe` pass through.
    """
    queues = [BlockQueue(MAX_WAITING_BLOCKS) for _ in range(channels)]
    flows = [transcribe(_blocks(queue)) for queue in queues]
    distributing = asyncio.ensure_future(_distribute(audio, queues))
    running = {asyncio.ensure_future(anext(flow, None)): channel for channel, flow in enumerate(flows)}
    segments: list[Segment] = []
    duration_s = 0.0
    try:
        while running:
            await asyncio.wait([*running, *([] if distributing.done() else [distributing])], return_when=asyncio.FIRST_COMPLETED)
            if distributing.done():
                distributing.result()
            for task in [task for task in running if task.done()]:
                channel, event = running.pop(task), task.result()
                if event is None:
                    continue
                running[asyncio.ensure_future(anext(flows[channel], None))] = channel
                if isinstance(event, Done):
                    duration_s = max(duration_s, event.duration_s)
                elif isinstance(event, SegmentFinal):
                    segments.append(replace(event.segment, index=len(segments), channel=channel))
                    yield SegmentFinal(segments[-1])
                else:
                    yield replace(event, channel=channel)
        yield Done(tuple(sorted(segments, key=lambda segment: segment.start_s)), duration_s)
    finally:
        await stop(distributing, *running, closing=[audio, *flows])


async def _distribute(audio: AsyncGenerator[Samples, None], queues: Sequence[BlockQueue]) -> None:
    async for block in audio:
        for queue, samples in zip(queues, block, strict=True):
            await queue.put(samples)
    for queue in queues:
        await queue.put(None)


async def _blocks(queue: BlockQueue) -> AsyncGenerator[Samples, None]:
    while (block := await queue.get()) is not None:
        yield block
