"""Feeds the audio of a live stream to its VAD, in as few calls as the VAD can take."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np

from serve_app.live.endpointing import VadEvent, VoiceActivityDetector
from serve_app.tasks import stop
from serve_app.window import SAMPLE_RATE, Samples

Mark = TypeVar("Mark")

MAX_WAITING_SAMPLES = SAMPLE_RATE
"""Audio that may wait for the VAD, samples; with more, nothing is read."""


@dataclass(frozen=True, slots=True)
class DetectedAudio:
    """Audio that the VAD has processed."""

    block: Samples
    """int16 [samples] at 16 kHz."""
    vad_events: Sequence[VadEvent]
    """The events that it brought."""
    possible_speech_until: int
    """See VoiceActivityDetector."""


async def with_vad_events(
    audio: AsyncGenerator[Samples | Mark, None], vad: VoiceActivityDetector
) -> AsyncGenerator[DetectedAudio | Mark, None]:
    """Yield the audio and whatever else comes between its blocks, in order.

    Blocks that arrive while the VAD is busy are joined. Errors of `audio` and of the VAD pass through.
    """
    reading: asyncio.Future[Samples | Mark | None] | None = None
    detecting: asyncio.Future[list[VadEvent]] | None = None
    waiting: list[Samples] = []
    marks: list[Mark | None] = []  # at most one, behind the audio that waits; None: the end
    block = np.zeros(0, np.int16)
    try:
        while True:
            if reading is None and not marks and sum(map(len, waiting)) < MAX_WAITING_SAMPLES:
                reading = asyncio.ensure_future(anext(audio, None))
            if detecting is None and waiting:
                block, waiting = np.concatenate(waiting), []
                detecting = asyncio.ensure_future(vad.push(block))
            if detecting is None and marks:
                if (mark := marks.pop()) is None:
                    return
                yield mark
                continue
            tasks: set[asyncio.Future[Any]] = {task for task in (reading, detecting) if task is not None}
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if detecting is not None and detecting.done():
                events, detecting = detecting.result(), None
                yield DetectedAudio(block, events, vad.possible_speech_until)
            if reading is not None and reading.done():
                item, reading = reading.result(), None
                if isinstance(item, np.ndarray):
                    waiting.append(item)
                else:
                    marks.append(item)
    finally:
        await stop(reading, detecting, closing=[audio])
