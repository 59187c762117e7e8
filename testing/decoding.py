"""Decoding in this process: windows as the decoder processes make them, and what to compare with."""

import io
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

import av
import numpy as np

from serve_app.audio.decoding import AudioFile
from serve_app.audio.dither import without_zeros
from serve_app.chunking import Planner, windows
from serve_app.window import SAMPLE_RATE, Samples, Window
from testing import media

CUT = (4.0, 1.5)
"""Window and overlap, seconds."""


def noise(seconds: float) -> bytes:
    """A WAV file."""
    return media.wav(np.random.default_rng(0).integers(-3000, 3000, round(seconds * SAMPLE_RATE), dtype=np.int16))


async def windows_of(blocks: AsyncGenerator[Samples, None], window_s: float, overlap_s: float) -> AsyncGenerator[Window, None]:
    """Cut int16 [samples] blocks into windows, without digital silence."""
    planner = Planner(window_s, overlap_s)
    async with aclosing(blocks):
        async for block in blocks:
            for window in planner.push(block):
                yield without_zeros(window)
    for window in planner.finish():
        yield without_zeros(window)


def plain_loop(path: Path) -> int:
    """Decode and resample a file frame by frame, in one thread, without any checks: the number of samples at 16 kHz."""
    samples = 0
    with path.open("rb") as file, av.open(file, "r") as container:
        container.streams.audio[0].codec_context.thread_count = 1
        resampler = av.AudioResampler("s16", "mono", SAMPLE_RATE)
        for frame in container.decode(audio=0):
            samples += sum(out.to_ndarray().size for out in resampler.resample(frame))
        return samples + sum(out.to_ndarray().size for out in resampler.resample(None))


def windows_of_file(data: bytes, window_s: float, overlap_s: float) -> list[Window]:
    """Decode a file and cut it into windows, without digital silence."""
    return [without_zeros(window) for window in windows(AudioFile(io.BytesIO(data)).blocks(), window_s, overlap_s)]


def assert_same_windows(windows: list[Window], expected: list[Window]) -> None:
    """Assert that both are the same windows, sample for sample."""
    assert [(w.index, w.start_sample) for w in windows] == [(w.index, w.start_sample) for w in expected]
    for window, other in zip(windows, expected, strict=True):
        assert np.array_equal(window.samples, other.samples)
