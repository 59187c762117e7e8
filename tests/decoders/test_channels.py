"""The channels of a file, each with windows of its own, through a decoder process."""

import io
import os
import signal
from contextlib import aclosing

import numpy as np
import pytest

from serve_app.audio.growing_file import GrowingFile
from serve_app.decoders.pool import DecoderPool
from serve_app.decoders.recording import Recording
from serve_app.errors import AudioError
from serve_app.merging.gaps import frame_levels
from serve_app.window import SAMPLE_RATE, Samples, Window
from testing import media
from testing.decoding import CUT, assert_same_windows, windows_of_file


def noise(channels: int, seconds: float) -> Samples:
    """int16 [samples, channels]."""
    return np.random.default_rng(channels).integers(-3000, 3000, (round(seconds * SAMPLE_RATE), channels), dtype=np.int16)


async def read(recording: Recording, kill_at: int | None = None) -> list[Window]:
    """The windows. The process is killed when it has sent `kill_at` of them."""
    windows: list[Window] = []
    async for window in recording.windows(*CUT):
        windows.append(window)
        if len(windows) == kill_at:
            assert recording.process is not None
            os.kill(recording.process.pid, signal.SIGKILL)
    return windows


def assert_channels(windows: list[Window], samples: Samples) -> None:
    """Assert that each channel has the windows of a mono file."""
    for channel, alone in enumerate(samples.T):
        own = [window for window in windows if window.channel == channel]
        assert_same_windows(own, windows_of_file(media.wav(alone), *CUT))
    assert {window.channel for window in windows} == set(range(samples.shape[1]))


@pytest.mark.parametrize("channels", [1, 2, 6, 8])
async def test_each_channel_has_the_windows_of_a_file_of_its_own(pool: DecoderPool, channels: int) -> None:
    samples = noise(channels, 15)
    recording = pool.open(io.BytesIO(media.wav(samples)), multichannel=True)
    assert recording.channels == ()
    windows = await read(recording)
    assert_channels(windows, samples)
    assert recording.channels == tuple(range(channels))
    for window in windows:
        assert window.levels is not None
        assert np.allclose(window.levels, frame_levels(window.samples), rtol=1e-6)


async def test_a_process_killed_in_mid_file_changes_nothing(pool: DecoderPool) -> None:
    samples = noise(3, 20)
    samples[:, 2] = samples[:, 0]
    data = media.wav(samples)
    whole = await read(pool.open(io.BytesIO(data), multichannel=True))
    for kill_at in (1, 2, 5):
        recording = pool.open(io.BytesIO(data), multichannel=True)
        windows = await read(recording, kill_at)
        assert_same_windows(windows, whole)
        assert [window.channel for window in windows] == [window.channel for window in whole]
        assert recording.channels == (0, 1)


async def test_the_windows_of_a_copy_are_digital_silence(pool: DecoderPool) -> None:
    samples = noise(2, 12)
    samples[:, 1] = samples[:, 0]
    recording = pool.open(io.BytesIO(media.wav(samples)), multichannel=True)
    seen = []
    async with aclosing(recording.windows(*CUT)) as windows:
        async for window in windows:
            # What was found at the end of the file does not change it for those who still read.
            assert recording.channels == (0, 1)
            seen.append((window.channel, bool(window.samples.any())))
    assert set(seen) == {(0, True), (1, False)}
    assert recording.channels == (0,)


async def test_a_file_that_is_still_being_sent(pool: DecoderPool) -> None:
    samples = noise(2, 15)
    data = media.wav(samples)
    with GrowingFile(final_bytes=len(data)) as file:
        await file.write(data[: len(data) // 2])
        recording = pool.open(file, multichannel=True)
        windows = []
        async with aclosing(recording.windows(*CUT)) as arriving:
            async for window in arriving:
                windows.append(window)
                if len(windows) == 2:
                    await file.write(data[len(data) // 2 :])
                    file.finish()
        assert_channels(windows, samples)


async def test_too_many_channels_are_the_file_s_fault(pool: DecoderPool) -> None:
    with pytest.raises(AudioError, match="9 channels") as error:
        await read(pool.open(io.BytesIO(media.wav(noise(9, 1))), multichannel=True))
    assert (error.value.param, error.value.status) == ("multichannel", 400)


async def test_without_it_channels_are_mixed(pool: DecoderPool) -> None:
    data = media.wav(noise(2, 10))
    recording = pool.open(io.BytesIO(data))
    windows = await read(recording)
    assert_same_windows(windows, windows_of_file(data, *CUT))
    assert {window.channel for window in windows} == {0}
    assert recording.channels == ()
