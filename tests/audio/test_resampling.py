"""The resampler: any format of frame, formats that change in the middle, and layouts without a mixing rule."""

from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from serve_app.audio.resampling import Resampler
from serve_app.window import SAMPLE_RATE, Samples
from testing import media


def frames_of(
    channels: NDArray[np.float32], rate_hz: int, layout: str = "mono", sample_format: str = "flt", frame_samples: int = 1000
) -> Iterator[AudioFrame]:
    """Float32 [samples] or [samples, channels] as frames of interleaved samples."""
    for start in range(0, len(channels), frame_samples):
        samples = channels[start : start + frame_samples].reshape(1, -1)
        if sample_format == "s16":
            samples = np.round(samples * 32767).astype(np.int16)
        frame = AudioFrame.from_ndarray(samples, format=sample_format, layout=layout)
        frame.sample_rate, frame.time_base, frame.pts = rate_hz, Fraction(1, rate_hz), start
        yield frame


def resampled(resampler: Resampler, frames: Iterable[AudioFrame | None]) -> Samples:
    return np.concatenate([np.zeros(0, np.int16), *(samples for frame in frames for samples in resampler(frame))])


def assert_is_chirp(samples: Samples) -> None:
    delay_s, correlation = media.alignment(samples, media.chirp(1.0))
    assert abs(delay_s) <= 0.001
    assert correlation > 0.99


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 44_100, 192_000])
@pytest.mark.parametrize("sample_format", ["s16", "flt"])
def test_any_rate_becomes_int16_at_16_khz(rate_hz: int, sample_format: str) -> None:
    frames = [*frames_of(media.chirp(1.0, rate_hz), rate_hz, sample_format=sample_format), None]
    samples = resampled(Resampler(), frames)
    assert samples.dtype == np.int16
    assert abs(len(samples) - SAMPLE_RATE) <= 2
    assert_is_chirp(samples)


def test_the_size_of_the_frames_makes_no_difference() -> None:
    whole, small = (
        resampled(Resampler(), [*frames_of(media.chirp(1.0, 48_000), 48_000, frame_samples=size), None]) for size in (48_000, 160)
    )
    assert np.array_equal(whole, small)


def test_a_format_change_in_mid_stream_loses_no_samples() -> None:
    stereo = np.repeat(media.chirp(1.0, 44_100)[:, None], 2, axis=1)
    parts = [
        frames_of(media.chirp(1.0, 48_000), 48_000),
        frames_of(stereo, 44_100, "stereo"),
        frames_of(media.chirp(1.0, 8_000), 8_000, sample_format="s16"),
    ]
    samples = resampled(Resampler(), [*(frame for part in parts for frame in part), None])
    assert abs(len(samples) - 3 * SAMPLE_RATE) <= 6
    for second in range(3):
        assert_is_chirp(samples[second * SAMPLE_RATE : (second + 1) * SAMPLE_RATE])


@pytest.mark.parametrize(("layout", "channels"), [("ambisonic 1", 4), ("9 channels", 9)])
def test_a_layout_without_a_mixing_rule_is_the_mean_of_its_channels(layout: str, channels: int) -> None:
    audio = np.zeros((SAMPLE_RATE, channels), np.float32)
    audio[:, -1] = media.chirp(1.0)
    with pytest.raises((av.FFmpegError, ValueError)):
        AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE).resample(next(frames_of(audio, SAMPLE_RATE, layout)))
    samples = resampled(Resampler(), [*frames_of(audio, SAMPLE_RATE, layout), None])
    assert np.abs(samples - 32768 * audio.mean(axis=1)).max() <= 2


def test_a_flushed_resampler_starts_anew() -> None:
    resampler = Resampler()
    first = resampled(resampler, [*frames_of(media.chirp(1.0, 48_000), 48_000), None])
    assert len(resampled(resampler, [None])) == 0
    second = resampled(resampler, [*frames_of(media.chirp(1.0, 48_000), 48_000), None])
    assert np.array_equal(first, second)
