"""The resampler: any format of frame, formats that change in the middle, and layouts without a mixing rule."""

from collections.abc import Iterable, Iterator
from fractions import Fraction

import av
import numpy as np
import pytest
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from serve_app.audio.resampling import MAX_GATHERED_BYTES, Resampler
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


def stereo_whose_phase_changes(seconds: float, rate_hz: int) -> NDArray[np.float32]:
    """A chirp in both channels, inverted in the second one every other second, float32 [samples, 2]."""
    chirp = media.chirp(seconds, rate_hz)
    return np.stack([chirp, chirp * (1 - 2 * (np.arange(len(chirp)) // rate_hz % 2))], axis=1).astype(np.float32)


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


@pytest.mark.parametrize("wanted", [1_000, 80_000, 10**9])
@pytest.mark.parametrize(("layout", "sample_format"), [("mono", "s16"), ("mono", "flt"), ("stereo", "s16"), ("stereo", "flt")])
def test_gathering_frames_makes_no_difference(layout: str, sample_format: str, wanted: int) -> None:
    audio = media.chirp(6.3, 44_100) if layout == "mono" else stereo_whose_phase_changes(6.3, 44_100)
    one_by_one, gathering = Resampler(), Resampler()
    frames = [*frames_of(audio, 44_100, layout, sample_format), None]
    gathered = [samples for frame in frames for samples in gathering(frame, wanted)]
    again = [*frames_of(audio, 44_100, layout, sample_format), None]
    assert np.array_equal(np.concatenate(gathered), resampled(one_by_one, again))
    assert len(gathered) < 6.3 * SAMPLE_RATE / min(wanted, SAMPLE_RATE) + 3


@pytest.mark.parametrize("layout", ["mono", "stereo"])
@pytest.mark.parametrize("frame_samples", [1_000, 3_000_000])
def test_no_more_is_gathered_than_the_maximum(layout: str, frame_samples: int) -> None:
    audio = np.repeat(media.tone(70.0, 48_000)[:, None], av.AudioLayout(layout).nb_channels, axis=1)
    resampler, given, taken = Resampler(), 0, 0
    for frame in frames_of(audio, 48_000, layout, frame_samples=frame_samples):
        given += frame.samples
        taken += 3 * sum(map(len, resampler(frame, 10**9)))
        assert (given - taken) * 4 * audio.shape[1] < MAX_GATHERED_BYTES + 4 * audio.shape[1] * (1_000 + 4_800)


@pytest.mark.parametrize("layout", ["mono", "stereo"])
def test_samples_that_are_not_finite_become_zeros_wherever_they_are(layout: str) -> None:
    clean = np.repeat(media.chirp(6.0, 44_100)[:, None], av.AudioLayout(layout).nb_channels, axis=1)
    places = np.random.default_rng(0).permutation(clean.size)[:300]
    broken = clean.copy()
    clean.ravel()[places] = 0
    broken.ravel()[places] = np.resize(np.array([np.nan, np.inf, -np.inf], np.float32), len(places))
    expected, samples = (resampled(Resampler(), [*frames_of(audio, 44_100, layout), None]) for audio in (clean, broken))
    assert np.array_equal(samples, expected)


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
