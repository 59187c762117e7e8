"""How audio reaches the VAD: joined while it is busy, in order with what comes between, and no further ahead than a second."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import numpy as np
import pytest

from serve_app.live.detection import MAX_WAITING_SAMPLES, DetectedAudio, with_vad_events
from serve_app.live.endpointing import VadEvent
from serve_app.window import SAMPLE_RATE, Samples
from testing import virtual_time

BUSY_S = 1.0
"""The VAD takes this long for each call, however long the audio is."""

MARK = "commit"


class SlowVad:
    """A VAD that reports the end of each block as speech."""

    def __init__(self, *, fails: bool = False) -> None:
        self.possible_speech_until = 0
        self._fails = fails

    async def push(self, block: Samples) -> list[VadEvent]:
        await asyncio.sleep(BUSY_S)
        if self._fails:
            raise RuntimeError("the VAD failed")
        self.possible_speech_until += len(block)
        return [VadEvent(True, self.possible_speech_until, self.possible_speech_until)]


class Microphone:
    """Sends items, each with a pause in front of it, seconds. `taken` counts them."""

    def __init__(self, *items: tuple[float, Samples | str | Exception]) -> None:
        self._items = items
        self.taken = 0
        self.is_closed = False

    async def audio(self) -> AsyncGenerator[Samples | str, None]:
        try:
            for pause_s, item in self._items:
                await asyncio.sleep(pause_s)
                self.taken += 1
                if isinstance(item, Exception):
                    raise item
                yield item
        finally:
            self.is_closed = True


def block(value: int, samples: int = 1600) -> Samples:
    return np.full(samples, value, np.int16)


def listen(microphone: Microphone, vad: SlowVad) -> list[str | tuple[list[int], int]]:
    """Marks, and for every block the different samples in it and the end of possible speech."""

    async def collect() -> list[str | tuple[list[int], int]]:
        found: list[str | tuple[list[int], int]] = []
        async with aclosing(with_vad_events(microphone.audio(), vad)) as items:
            async for item in items:
                if isinstance(item, DetectedAudio):
                    assert item.vad_events[0].sample == item.possible_speech_until
                    found.append((sorted(set(item.block.tolist())), item.possible_speech_until))
                else:
                    found.append(item)
        return found

    return virtual_time.run(collect())


def test_blocks_that_come_while_the_vad_is_busy_are_joined() -> None:
    microphone = Microphone(*((0.3, block(n)) for n in range(8)))
    assert listen(microphone, SlowVad()) == [([0], 1600), ([1, 2, 3], 6400), ([4, 5, 6], 11_200), ([7], 12_800)]


def test_what_comes_between_blocks_stays_between_them() -> None:
    microphone = Microphone((0, block(1)), (0, block(2)), (0, MARK), (0, MARK), (0, block(3)), (0, MARK))
    assert listen(microphone, SlowVad()) == [([1], 1600), ([2], 3200), MARK, MARK, ([3], 4800), MARK]


def test_at_most_a_second_waits() -> None:
    microphone, vad = Microphone(*((0, block(n, SAMPLE_RATE // 2)) for n in range(10))), SlowVad()

    async def take_one() -> int:
        async with aclosing(with_vad_events(microphone.audio(), vad)) as items:
            await anext(items)
            return microphone.taken

    taken = virtual_time.run(take_one())
    assert (taken - 1) * SAMPLE_RATE // 2 <= MAX_WAITING_SAMPLES
    assert taken > 1
    assert microphone.is_closed


@pytest.mark.parametrize("fails", [True, False])
def test_errors_pass_through(fails: bool) -> None:
    microphone = Microphone((0, block(1)), (3 * BUSY_S, KeyError("gone")))
    with pytest.raises(RuntimeError if fails else KeyError):
        listen(microphone, SlowVad(fails=fails))
    assert microphone.is_closed


def test_no_audio() -> None:
    assert listen(Microphone(), SlowVad()) == []
