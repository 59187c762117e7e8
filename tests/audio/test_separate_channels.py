"""Channels that are not mixed, in real formats; and those that only repeat the first one."""

import io
import random

import numpy as np
import pytest
import soxr
from numpy.typing import NDArray

from serve_app.audio.copies import COMPARED_SAMPLES, Copies
from serve_app.audio.decoding import BLOCK_SAMPLES, MAX_CHANNELS, AudioFile
from serve_app.errors import AudioError
from serve_app.window import SAMPLE_RATE, Samples
from testing import media
from testing.digit_strings import Bank, compose

STEREO = [
    *(("wav", "pcm_s16le", 16_000), ("wav", "pcm_f32le", 44_100), ("flac", "flac", 48_000), ("mp3", "libmp3lame", 44_100)),
    *(("ogg", "libopus", 48_000), ("ipod", "aac", 44_100), ("ogg", "vorbis", 44_100), ("asf", "wmav2", 44_100)),
]
"""Container, codec and rate, Hz."""

LFE = 3
"""The channel of 5.1 in which lossy codecs keep only the lowest frequencies."""


def tones(channels: int, rate: int, seconds: float = 6.0) -> NDArray[np.float32]:
    """A tone for each channel, the first one of 300 Hz, each 150 Hz above the one before: float32 [samples, channels]."""
    return np.stack([0.6 * media.tone(seconds, rate, 300.0 + 150 * channel) for channel in range(channels)], axis=1)


def decoded(data: bytes) -> Samples:
    """int16 [channels, samples]."""
    blocks = list(AudioFile(io.BytesIO(data), multichannel=True).blocks())
    assert all(block.shape[1] >= BLOCK_SAMPLES for block in blocks[:-1])
    return np.concatenate(blocks, axis=1)


def pitches(samples: Samples) -> list[int]:
    """The strongest frequency of each channel, Hz."""
    second = samples[:, SAMPLE_RATE : 2 * SAMPLE_RATE].astype(np.float64)
    return [int(np.argmax(np.abs(np.fft.rfft(channel)))) for channel in second]


@pytest.mark.parametrize(("container", "codec", "rate"), STEREO)
def test_two_channels(container: str, codec: str, rate: int) -> None:
    samples = decoded(media.encode(tones(2, rate), rate, container, codec, layout="stereo"))
    assert pitches(samples) == [300, 450]
    assert samples.shape[1] == pytest.approx(6 * SAMPLE_RATE, abs=2_500)


@pytest.mark.parametrize(
    ("container", "codec", "rate"),
    [("wav", "pcm_s16le", 16_000), ("flac", "flac", 16_000), ("ogg", "libopus", 48_000), ("ipod", "aac", 44_100)],
)
def test_six_channels(container: str, codec: str, rate: int) -> None:
    found = pitches(decoded(media.encode(tones(6, rate), rate, container, codec, layout="5.1")))
    assert [pitch for channel, pitch in enumerate(found) if channel != LFE] == [300, 450, 600, 900, 1050]


@pytest.mark.parametrize("channels", [1, 7, 8])
def test_any_number_up_to_eight(channels: int) -> None:
    samples = decoded(media.wav(tones(channels, 16_000)))
    assert pitches(samples) == [300 + 150 * channel for channel in range(channels)]


def test_eight_channels_of_a_planar_format() -> None:
    found = pitches(decoded(media.encode(tones(8, 48_000), 48_000, "ogg", "libopus", layout="7.1")))
    assert [pitch for channel, pitch in enumerate(found) if channel != LFE] == [300, 450, 600, 900, 1050, 1200, 1350]


def test_nine_are_refused() -> None:
    audio = AudioFile(io.BytesIO(media.wav(tones(MAX_CHANNELS + 1, 16_000))), multichannel=True)
    with pytest.raises(AudioError, match="9 channels") as error:
        next(audio.blocks())
    assert error.value.param == "multichannel"


def test_samples_are_those_of_the_file() -> None:
    samples = np.random.default_rng(0).integers(-20_000, 20_000, (12 * SAMPLE_RATE, 2), dtype=np.int16)
    assert np.array_equal(decoded(media.wav(samples)), samples.T)


def test_samples_that_are_no_numbers_stay_in_their_channel() -> None:
    samples = tones(2, 16_000)
    samples[1_000, 1] = np.nan
    clean = decoded(media.wav(tones(2, 16_000), subtype="FLOAT"))
    found = decoded(media.wav(samples, subtype="FLOAT"))
    assert np.array_equal(found[0], clean[0])
    assert np.flatnonzero(found[1] != clean[1]).tolist() == [1_000]


def test_a_gap_is_silence_in_every_channel() -> None:
    data = media.encode(tones(2, 48_000), 48_000, "matroska", "flac", layout="stereo")
    gap = media.remux(data, lambda packets: [packet for packet in packets if not 1 < media.at_s(packet) < 2])
    samples = decoded(gap)
    assert samples.shape[1] == pytest.approx(6 * SAMPLE_RATE, abs=500)
    assert not samples[:, round(1.2 * SAMPLE_RATE) : round(1.8 * SAMPLE_RATE)].any()


def test_a_change_of_layout_keeps_the_number_of_channels() -> None:
    one, two = (
        media.encode(tones(channels, 16_000), 16_000, "mp3", "libmp3lame", layout=layout, muxer={"write_xing": "0"})
        for channels, layout in ((1, "mono"), (2, "stereo"))
    )
    samples = decoded(two + one)
    assert pitches(samples) == [300, 450]
    assert pitches(samples[:, 7 * SAMPLE_RATE :]) == [300, 0]
    assert not samples[1, 8 * SAMPLE_RATE :].any()
    assert decoded(one + two).shape == (1, samples.shape[1])


@pytest.mark.parametrize("bit_rate", [64_000, 96_000, 128_000])
@pytest.mark.parametrize(("container", "codec", "rate"), STEREO)
def test_mono_in_stereo_is_one_channel(bank: Bank, container: str, codec: str, rate: int, bit_rate: int) -> None:
    samples = decoded(media.encode(mono(bank, rate), rate, container, codec, layout="stereo", bit_rate=bit_rate))
    copies = Copies()
    first, second = copies.silenced(samples)
    assert np.array_equal(first, samples[0])
    assert copies.channels == [1]
    assert np.abs(second).max() < 100


@pytest.mark.parametrize(("container", "codec", "rate"), STEREO)
def test_two_talkers_are_no_copies(bank: Bank, container: str, codec: str, rate: int) -> None:
    one, two = mono(bank, rate, 1), mono(bank, rate, 2)
    length = min(len(one), len(two))
    # Each microphone hears the other talker, 10 dB below.
    both = np.stack([one[:length] + 0.3 * two[:length], two[:length] + 0.3 * one[:length]], axis=1)
    samples = decoded(media.encode(both, rate, container, codec, layout="stereo", bit_rate=64_000))
    copies = Copies()
    assert np.array_equal(copies.silenced(samples), samples)
    assert copies.channels == []


def test_what_is_a_copy_is_decided_second_by_second() -> None:
    noise = np.random.default_rng(0).integers(-3000, 3000, (3, 10 * SAMPLE_RATE), dtype=np.int16)
    noise[1, : 4 * SAMPLE_RATE] = noise[0, : 4 * SAMPLE_RATE]
    noise[2] = noise[0]
    copies = Copies()
    silenced = np.concatenate(
        [copies.silenced(noise[:, : 5 * SAMPLE_RATE + 300]), copies.silenced(noise[:, 5 * SAMPLE_RATE + 300 :])], axis=1
    )
    assert not silenced[1, : 4 * SAMPLE_RATE].any()
    assert np.array_equal(silenced[1, 4 * SAMPLE_RATE :], noise[1, 4 * SAMPLE_RATE :])
    assert not silenced[2].any()
    assert copies.channels == [2]


@pytest.mark.parametrize("samples", [1, 100, COMPARED_SAMPLES // 2, COMPARED_SAMPLES, COMPARED_SAMPLES * 3 // 2])
def test_rests_and_short_recordings(samples: int) -> None:
    block = np.full((2, samples), 1000, np.int16)
    copies = Copies()
    assert not copies.silenced(block)[1].any()
    assert copies.channels == [1]
    assert block[1].all()


def test_a_silent_channel_is_no_copy() -> None:
    block = np.zeros((3, SAMPLE_RATE), np.int16)
    block[0] = np.random.default_rng(0).integers(-3000, 3000, SAMPLE_RATE)
    block[2] = block[0] + np.random.default_rng(1).integers(-1, 2, SAMPLE_RATE)
    copies = Copies()
    copies.silenced(block)
    assert copies.channels == [2]


def mono(bank: Bank, rate: int, seed: int = 0) -> NDArray[np.float32]:
    """Digits in faint noise, float32 [samples]."""
    rng = random.Random(seed)
    voices = sorted(bank)
    string = compose(bank[voices[seed % 3]], [rng.randrange(10) for _ in range(16)], rng)
    noisy = 0.7 * string.samples + np.random.default_rng(seed).normal(0, 0.001, len(string.samples))
    return np.asarray(soxr.resample(noisy, SAMPLE_RATE, rate), np.float32)
