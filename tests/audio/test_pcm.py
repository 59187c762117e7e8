"""Raw samples: every encoding, sample rate and number of channels, split into pieces of any size."""

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from serve_app.audio.pcm import Encoding, PcmDecoder, PcmFormat
from serve_app.errors import AudioError
from serve_app.window import SAMPLE_RATE, Samples
from testing import media

ENCODINGS: tuple[Encoding, ...] = ("pcm_s16le", "pcm_f32le", "mulaw", "alaw")
"""All encodings that clients may send."""

TONE_S = 2
"""Length of the test tone, seconds."""


def tone(rate_hz: int, seconds: float = TONE_S) -> NDArray[np.float32]:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(round(seconds * rate_hz)) / rate_hz)).astype(np.float32)


def decoded(data: bytes, audio_format: PcmFormat, piece_bytes: int) -> Samples:
    decoder = PcmDecoder(audio_format)
    pieces = [decoder.push(data[start : start + piece_bytes]) for start in range(0, len(data), piece_bytes)]
    return np.concatenate([*pieces, decoder.finish()])


def max_error(found: Samples, rate_hz: int) -> float:
    """Maximum difference from the test tone, without the edges, where resampling is less exact."""
    expected = tone(rate_hz)
    if rate_hz != SAMPLE_RATE:
        expected = soxr.resample(expected, rate_hz, SAMPLE_RATE)
    assert len(found) == len(expected) == TONE_S * SAMPLE_RATE
    middle = slice(1_000, -1_000)
    return float(np.abs(found[middle] / 32768 - expected[middle]).max())


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_format_gives_the_same_samples(rate_hz: int, encoding: Encoding, channels: int) -> None:
    data = media.pcm(tone(rate_hz), encoding, channels)
    found = decoded(data, PcmFormat(encoding, rate_hz, channels), 3_333)
    assert max_error(found, rate_hz) < (0.02 if encoding in ("mulaw", "alaw") else 0.001)


@pytest.mark.parametrize("rate_hz", [8_000, 16_000, 48_000])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("channels", [1, 2, 8])
def test_separate_channels_are_those_of_a_stream_of_each_alone(rate_hz: int, encoding: Encoding, channels: int) -> None:
    samples = np.random.default_rng(0).uniform(-0.5, 0.5, (rate_hz + 78, channels)).astype(np.float32)
    data = media.pcm(samples, encoding)
    decoder = PcmDecoder(PcmFormat(encoding, rate_hz, channels), separates=True)
    blocks = [block for start in range(0, len(data), 3_333) for block in decoder.blocks(data[start : start + 3_333])]
    found = np.concatenate([*blocks, decoder.finish()], axis=1)
    alone = [decoded(media.pcm(samples[:, n], encoding), PcmFormat(encoding, rate_hz), 4_001) for n in range(channels)]
    np.testing.assert_array_equal(found, alone)


@pytest.mark.parametrize("piece_bytes", [1, 3, 160, 48_000, 10**6])
def test_pieces_of_any_length(piece_bytes: int) -> None:
    data = media.pcm(tone(24_000, 0.1), "pcm_f32le", 2)
    audio_format = PcmFormat("pcm_f32le", 24_000, 2)
    np.testing.assert_array_equal(decoded(data, audio_format, piece_bytes), decoded(data, audio_format, 999))


def test_an_incomplete_last_sample_is_dropped() -> None:
    data = media.pcm(tone(SAMPLE_RATE), "pcm_s16le")
    np.testing.assert_array_equal(decoded(data + b"\x7f", PcmFormat(), 100), decoded(data, PcmFormat(), 100))


def test_samples_out_of_range_are_clipped_and_nan_and_infinity_become_silence() -> None:
    data = np.array([2.0, -2.0, np.nan, np.inf, 0.5], "<f4").tobytes()
    assert decoded(data, PcmFormat("pcm_f32le"), 7).tolist() == [32767, -32768, 0, 0, 16384]


@pytest.mark.parametrize(
    "wrong", [{"sample_rate": 0}, {"sample_rate": 10**9}, {"channels": 0}, {"channels": 99}, {"encoding": "opus"}], ids=str
)
def test_an_invalid_format_is_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(AudioError) as caught:
        PcmFormat(**wrong)  # type: ignore[arg-type]
    assert caught.value.param in wrong
