"""The channels of a live stream side by side: which events come, how far one may be behind, and how all of it ends."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np
import pytest

from serve_app.events import Done, Hypothesis, LiveEvent, SegmentFinal
from serve_app.live.channels import MAX_WAITING_BLOCKS, transcribe_channels
from serve_app.transcript import Segment
from serve_app.window import Samples
from testing import virtual_time

BLOCKS = 40


class Stream:
    """Audio in blocks of one sample for each channel, whose value is the channel's number; counts what is read and closed."""

    def __init__(self, channels: int, blocks: int = BLOCKS, error: Exception | None = None) -> None:
        self.read = 0
        self.closed = list[str]()
        self._block = np.arange(channels, dtype=np.int16)[:, None]
        self._blocks = blocks
        self._error = error

    async def audio(self) -> AsyncGenerator[Samples, None]:
        try:
            for _ in range(self._blocks):
                self.read += 1
                await asyncio.sleep(0)
                yield self._block
            if self._error is not None:
                raise self._error
        finally:
            self.closed.append("audio")

    async def transcribe(self, audio: AsyncGenerator[Samples, None]) -> AsyncGenerator[LiveEvent, None]:
        """A word for each block, at the block's number; channel n takes n seconds for it."""
        position, channel = 0, -1
        segments = []
        try:
            async with aclosing(audio):
                async for block in audio:
                    channel = int(block[0])
                    await asyncio.sleep(channel)
                    yield Hypothesis((), ())
                    segments.append(Segment(position, f"{channel}", float(position), position + 1.0, (), ()))
                    yield SegmentFinal(segments[-1])
                    position += 1
            yield Done(tuple(segments), float(position + channel))
        finally:
            self.closed.append(f"channel {channel}")


async def collect(stream: Stream, channels: int) -> list[LiveEvent]:
    async with aclosing(transcribe_channels(stream.audio(), channels, stream.transcribe)) as events:
        return [event async for event in events]


@pytest.mark.parametrize("channels", [1, 2, 5])
def test_every_event_has_its_channel_and_the_end_is_in_the_order_of_time(channels: int) -> None:
    *events, done = virtual_time.run(collect(Stream(channels), channels))
    segments = [event.segment for event in events if isinstance(event, SegmentFinal)]
    assert [segment.index for segment in segments] == list(range(channels * BLOCKS))
    assert all(segment.text == f"{segment.channel}" for segment in segments)
    for channel in range(channels):
        assert [s.start_s for s in segments if s.channel == channel] == list(range(BLOCKS))
        assert [event.channel for event in events if isinstance(event, Hypothesis)].count(channel) == BLOCKS
    assert isinstance(done, Done)
    assert sorted(done.segments, key=lambda segment: segment.start_s) == list(done.segments)
    assert set(done.segments) == set(segments)
    assert done.duration_s == BLOCKS + channels - 1


def test_no_channel_is_read_further_ahead_of_another_than_a_few_blocks() -> None:
    stream, ahead = Stream(3), list[int]()

    async def watched(audio: AsyncGenerator[Samples, None]) -> AsyncGenerator[LiveEvent, None]:
        taken = 0
        async for block in audio:
            taken += 1
            if block[0] == 2:
                ahead.append(stream.read - taken)
                await asyncio.sleep(1)
        yield Done((), 0.0)

    async def run() -> None:
        async with aclosing(transcribe_channels(stream.audio(), 3, watched)) as events:
            async for _ in events:
                pass

    virtual_time.run(run())
    assert MAX_WAITING_BLOCKS <= max(ahead) <= MAX_WAITING_BLOCKS + 2


def test_an_error_of_the_audio_ends_all() -> None:
    stream = Stream(3, error=RuntimeError("the client is gone"))
    with pytest.raises(RuntimeError, match="the client is gone"):
        virtual_time.run(collect(stream, 3))
    assert sorted(stream.closed) == ["audio", "channel 0", "channel 1", "channel 2"]


def test_an_error_of_one_channel_ends_all() -> None:
    stream = Stream(2)

    async def failing(audio: AsyncGenerator[Samples, None]) -> AsyncGenerator[LiveEvent, None]:
        async with aclosing(stream.transcribe(audio)) as events:
            async for event in events:
                if isinstance(event, SegmentFinal) and event.segment.text == "1":
                    raise RuntimeError("the model failed")
                yield event

    async def run() -> None:
        async with aclosing(transcribe_channels(stream.audio(), 2, failing)) as events:
            async for _ in events:
                pass

    with pytest.raises(RuntimeError, match="the model failed"):
        virtual_time.run(run())
    assert sorted(stream.closed) == ["audio", "channel 0", "channel 1"]


def test_whoever_leaves_in_the_middle_leaves_nothing_behind() -> None:
    stream = Stream(2)

    async def run() -> None:
        async with aclosing(transcribe_channels(stream.audio(), 2, stream.transcribe)) as events:
            await anext(events)
        assert len(asyncio.all_tasks()) == 1

    virtual_time.run(run())
    assert "audio" in stream.closed
    assert stream.read < BLOCKS
