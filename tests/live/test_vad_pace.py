"""How often the VAD runs: live streams share batches, and neither a slow batch nor a recording holds the others back."""

import asyncio
from typing import Any

import numpy as np
import pytest

from serve_app.live.endpointing import VAD_FRAME_SAMPLES, Endpointing
from serve_app.live.vad import SileroModel
from testing import virtual_time


class PacedModel(SileroModel):
    """Takes `batch_s` of virtual time for a batch. `sizes`: the streams in each."""

    def __init__(self, batch_s: float) -> None:
        super().__init__()
        self.sizes: list[int] = []
        self._batch_s = batch_s

    async def _process(self, batch: list[Any]) -> None:
        self.sizes.append(len(batch))
        await asyncio.sleep(self._batch_s)
        for request in batch:
            request.result.set_result([0.0] * len(request.frames))


def batches_per_s(streams: int, frames: int, every_s: float, *, pieces: int = 1, batch_s: float = 0.005) -> float:
    """Of streams that send so many frames at once, again and again, each as soon as it may but no sooner than after `every_s`.

    `pieces`: calls for what comes at once, each of which waits for the one before it.
    """

    async def send(model: SileroModel, number: int) -> None:
        detector, next_s = model.detector(Endpointing(0.8)), every_s * number / streams
        while next_s < 10:
            await asyncio.sleep(next_s - virtual_time.now_s())
            for piece in range(pieces):
                count = frames - pieces + 1 if piece == pieces - 1 else 1
                await detector.push(np.zeros(count * VAD_FRAME_SAMPLES, np.int16))
            next_s = max(next_s + every_s, virtual_time.now_s())

    async def run() -> float:
        model = PacedModel(batch_s)
        await asyncio.gather(*(send(model, number) for number in range(streams)))
        return len(model.sizes) / virtual_time.now_s()

    return virtual_time.run(run())


@pytest.mark.parametrize("pieces", [1, 2])
@pytest.mark.parametrize("frames", [2, 8, 12, 31])
def test_live_streams_share_batches_however_much_audio_comes_at_once(frames: int, pieces: int) -> None:
    """Of many streams, each is fetched from its proxy rarely."""
    assert batches_per_s(60, frames, every_s=frames * 0.032, pieces=pieces) < 21


def test_audio_that_comes_at_about_the_same_time_is_one_batch() -> None:
    """As an ingress takes messages of many streams one after the other. Each has its answer before the next audio comes."""
    model = PacedModel(batch_s=0.005)

    async def send(number: int) -> float:
        detector = model.detector(Endpointing(0.8))
        for begin_s in (1.0, 1.1, 1.2):
            await asyncio.sleep(begin_s + 0.0003 * number - virtual_time.now_s())
            await detector.push(np.zeros(3 * VAD_FRAME_SAMPLES, np.int16))
        return virtual_time.now_s()

    async def run() -> list[float]:
        return await asyncio.gather(*(send(number) for number in range(24)))

    assert max(virtual_time.run(run())) < 1.22
    assert model.sizes == [24] * 3


def test_a_recording_is_not_held_back() -> None:
    """It is sent at once, so that more audio waits for every batch than is spoken in between."""
    assert batches_per_s(1, 31, every_s=0) > 180


@pytest.mark.parametrize(("batch_s", "interval_s"), [(0.001, 0.05), (0.01, 0.1), (0.02, 0.2), (0.1, 0.25), (0.4, 0.4)])
def test_the_longer_a_batch_runs_the_rarer_batches_are_within_limits(batch_s: float, interval_s: float) -> None:
    assert batches_per_s(30, 1, every_s=0.032, batch_s=batch_s) == pytest.approx(1 / interval_s, rel=0.1)
