"""Windows of audio, made in this process as the decoder processes make them."""

import io
from collections.abc import AsyncGenerator
from contextlib import aclosing

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


def windows_of_file(data: bytes, window_s: float, overlap_s: float) -> list[Window]:
    """Decode a file and cut it into windows, without digital silence."""
    return [without_zeros(window) for window in windows(AudioFile(io.BytesIO(data)).blocks(), window_s, overlap_s)]


def assert_same_windows(windows: list[Window], expected: list[Window]) -> None:
    """Assert that both are the same windows, sample for sample."""
    assert [(w.index, w.start_sample) for w in windows] == [(w.index, w.start_sample) for w in expected]
    for window, other in zip(windows, expected, strict=True):
        assert np.array_equal(window.samples, other.samples)
