"""Raw samples of every kind: the same sound, whatever its form and however it is cut."""

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from serve_app.audio.pcm import Encoding, PcmDecoder, PcmFormat
from serve_app.errors import AudioError
from serve_app.window import SAMPLE_RATE, Samples
from testing import media

ENCODINGS: tuple[Encoding, ...] = ("pcm_s16le", "pcm_f32le", "mulaw", "alaw")
SECONDS = 2


def tone(rate_hz: int) -> NDArray[np.float32]:
    return (0.3 * np.sin(2 * np.pi * 440 * np.arange(SECONDS * rate_hz) / rate_hz)).astype(np.float32)


def encoded(samples: NDArray[np.float32], encoding: Encoding, channels: int = 1) -> bytes:
    spread = np.repeat(samples, channels)
    if encoding == "pcm_f32le":
        return spread.astype("<f4").tobytes()
    if encoding == "pcm_s16le":
        return np.round(spread * 32767).astype("<i2").tobytes()
    subtype = {"mulaw": "ULAW", "alaw": "ALAW"}[encoding]
    return media.wav(spread, SAMPLE_RATE, subtype)[-len(spread) :]


def decoded(data: bytes, audio_format: PcmFormat, piece_bytes: int) -> Samples:
    decoder = PcmDecoder(audio_format)
    pieces = [decoder.push(data[start : start + piece_bytes]) for start in range(0, len(data), piece_bytes)]
    return np.concatenate([*pieces, decoder.finish()])


def loudness_of_difference(found: Samples, rate_hz: int) -> float:
    expected = tone(rate_hz)
    if rate_hz != SAMPLE_RATE:
        expected = soxr.resample(expected, rate_hz, SAMPLE_RATE)
    assert len(found) == len(expected) == SECONDS * SAMPLE_RATE
    middle = slice(1_000, -1_000)
    return float(np.abs(found[middle] / 32768 - expected[middle]).max())


@pytest.mark.parametrize("rate_hz", [8_000, 11_025, 16_000, 22_050, 24_000, 44_100, 48_000])
@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("channels", [1, 2])
def test_every_form_is_the_same_sound(rate_hz: int, encoding: Encoding, channels: int) -> None:
    data = encoded(tone(rate_hz), encoding, channels)
    found = decoded(data, PcmFormat(encoding, rate_hz, channels), 3_333)
    assert loudness_of_difference(found, rate_hz) < (0.02 if encoding in ("mulaw", "alaw") else 0.001)


@pytest.mark.parametrize("piece_bytes", [1, 3, 160, 48_000, 10**6])
def test_pieces_of_any_length(piece_bytes: int) -> None:
    data = encoded(tone(24_000), "pcm_f32le", 2)
    audio_format = PcmFormat("pcm_f32le", 24_000, 2)
    np.testing.assert_array_equal(decoded(data, audio_format, piece_bytes), decoded(data, audio_format, 999))


def test_a_sample_that_is_cut_off_is_not_heard() -> None:
    data = encoded(tone(SAMPLE_RATE), "pcm_s16le")
    np.testing.assert_array_equal(decoded(data + b"\x7f", PcmFormat(), 100), decoded(data, PcmFormat(), 100))


def test_what_is_too_loud_is_clipped_and_what_is_no_number_is_silence() -> None:
    data = np.array([2.0, -2.0, np.nan, np.inf, 0.5], "<f4").tobytes()
    assert decoded(data, PcmFormat("pcm_f32le"), 7).tolist() == [32767, -32768, 0, 0, 16384]


@pytest.mark.parametrize(
    "wrong", [{"sample_rate": 0}, {"sample_rate": 10**9}, {"channels": 0}, {"channels": 99}, {"encoding": "opus"}], ids=str
)
def test_what_cannot_be(wrong: dict[str, object]) -> None:
    with pytest.raises(AudioError) as caught:
        PcmFormat(**wrong)  # type: ignore[arg-type]
    assert caught.value.param in wrong
