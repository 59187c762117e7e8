"""Channels are mixed to mono; where they cancel out, one of them is taken."""

import io

import numpy as np
import pytest
from numpy.typing import NDArray

from serve_app.audio.decoding import AudioFile
from serve_app.audio.mixing import BLOCK_S, MonoMixer
from serve_app.audio.pcm import PcmDecoder, PcmFormat
from serve_app.window import SAMPLE_RATE, Samples
from testing import media

BLOCK = round(BLOCK_S * SAMPLE_RATE)
"""Samples per block."""


def decode(data: bytes) -> Samples:
    return np.concatenate(list(AudioFile(io.BytesIO(data)).blocks()))


def opposite(seconds: float = 2.0) -> NDArray[np.float32]:
    """A chirp in the first channel, inverted in the second, float32 [samples, 2]."""
    chirp = media.chirp(seconds)
    return np.stack([chirp, -chirp], axis=1)


def assert_is_chirp(samples: Samples, seconds: float = 2.0) -> None:
    delay_s, correlation = media.alignment(samples, media.chirp(seconds))
    assert abs(delay_s) <= 0.05
    assert correlation > 0.95
    assert np.abs(samples).max() > 10_000


@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "FLOAT", "DOUBLE"])
def test_a_wav_file_of_opposite_phase(subtype: str) -> None:
    assert_is_chirp(decode(media.wav(opposite(), subtype=subtype)))


@pytest.mark.parametrize(("container", "codec"), [("flac", "flac"), ("mp3", "libmp3lame"), ("ogg", "libopus"), ("mp4", "aac")])
def test_a_compressed_file_of_opposite_phase(container: str, codec: str) -> None:
    rate = 48_000
    chirp = media.chirp(2.0, rate)
    assert_is_chirp(decode(media.encode(np.stack([chirp, -chirp], axis=1), rate, container, codec, layout="stereo")))


def test_a_quieter_opposite_channel() -> None:
    assert_is_chirp(decode(media.wav(opposite() * [1.0, 0.8])))


def test_six_channels_whose_mix_cancels_out() -> None:
    surround = np.zeros((2 * SAMPLE_RATE, 6), np.float32)
    surround[:, :2] = opposite()
    assert_is_chirp(decode(media.encode(surround, SAMPLE_RATE, "flac", "flac", layout="5.1")))


@pytest.mark.parametrize("piece_bytes", [7, 6_400, 10**6])
@pytest.mark.parametrize("rate", [8_000, 16_000])
def test_raw_samples_of_opposite_phase(piece_bytes: int, rate: int) -> None:
    chirp = media.chirp(1.0, rate)
    data = np.round(np.stack([chirp, -chirp], axis=1) * 32767).astype("<i2").tobytes()
    decoder = PcmDecoder(PcmFormat(sample_rate=rate, channels=2))
    pieces = [decoder.push(data[start : start + piece_bytes]) for start in range(0, len(data), piece_bytes)]
    assert_is_chirp(np.concatenate([*pieces, decoder.finish()]), 1.0)


def test_the_mix_returns_without_a_click_when_the_phase_is_right_again() -> None:
    tone = media.tone(1.0, hertz=100.0)
    stereo = np.concatenate([np.stack([tone, tone], axis=1), np.stack([tone, -tone], axis=1), np.stack([tone, tone], axis=1)])
    samples = decode(media.wav(stereo)).astype(int)
    assert np.abs(np.diff(samples)).max() < 1_500
    levels = np.sqrt(np.square(samples.reshape(-1, SAMPLE_RATE // 2)).mean(axis=1))
    assert levels.min() > 0.8 * levels.max()


def random_stereo(kind: str) -> NDArray[np.float32]:
    """Float32 [2, samples]."""
    rng = np.random.default_rng(0)
    left, right = rng.normal(0, 0.1, (2, 4 * BLOCK)).astype(np.float32)
    seconds = {"unrelated": right, "equal": left, "one silent": 0 * left, "half inverted": right - 0.5 * left}
    return np.stack([left, seconds[kind]])


@pytest.mark.parametrize("kind", ["unrelated", "equal", "one silent", "half inverted"])
def test_channels_that_do_not_cancel_out_are_mixed(kind: str) -> None:
    mixer, stereo = MonoMixer(np.array([0.5, 0.25], np.float32), SAMPLE_RATE), random_stereo(kind)
    for start in range(0, stereo.shape[1], BLOCK):
        block = stereo[:, start : start + BLOCK]
        assert np.array_equal(mixer(block), block[0] * np.float32(0.5) + block[1] * np.float32(0.25))


@pytest.mark.parametrize("dtype", [np.int16, np.uint8, np.float32])
@pytest.mark.parametrize("channels", [2, 5])
@pytest.mark.parametrize("is_interleaved", [True, False])
@pytest.mark.parametrize("run_blocks", [1, 7, 100])
def test_a_run_of_blocks_is_as_block_by_block(dtype: type, channels: int, is_interleaved: bool, run_blocks: int) -> None:
    """Channels that go slowly from opposite to equal phase and back, then unrelated ones, with an offset, then zeros."""
    rng, blocks = np.random.default_rng(0), 40
    noise = rng.normal(0, 30, (channels, blocks * BLOCK))
    noise[1] = noise[0] * np.repeat(np.cos(np.linspace(np.pi, 3 * np.pi, blocks)), BLOCK) + 0.1 * noise[1]
    noise[2:] *= 0.1
    unrelated = rng.normal(0, 30, noise.shape)
    samples = np.clip(np.concatenate([noise, unrelated, 0 * unrelated], axis=1) + 128, 0, 255).astype(dtype)
    samples = np.asfortranarray(samples) if is_interleaved else samples
    weights = np.linspace(1, 1 + (channels - 2) / 10, channels, dtype=np.float32)
    together, one_by_one = (MonoMixer(weights, SAMPLE_RATE) for _ in range(2))

    def mixed(mixer: MonoMixer, size: int) -> NDArray[np.float32]:
        return np.concatenate([mixer(samples[:, start : start + size]) for start in range(0, samples.shape[1], size)])

    expected = mixed(one_by_one, BLOCK)
    assert np.array_equal(mixed(together, run_blocks * BLOCK), expected)
    changed = (np.abs(expected - weights @ samples) > 1).reshape(-1, BLOCK).any(axis=1)
    assert 5 < changed.sum() < blocks


def test_channels_with_the_same_offset_cancel_out_too() -> None:
    """Without the offset, the power of the mix is zero."""
    mixer, tone = MonoMixer(np.full(2, 0.5, np.float32), SAMPLE_RATE), media.tone(3 * BLOCK_S)
    stereo = np.stack([tone, -tone], axis=1) + np.float32(0.4)
    assert np.abs(mixer(stereo.T)[BLOCK:] - stereo[BLOCK:, 0]).max() < 1e-6


def test_silence_changes_nothing() -> None:
    mixer, tone = MonoMixer(np.full(2, 0.5, np.float32), SAMPLE_RATE), media.tone(BLOCK_S)
    mixer(np.stack([tone, -tone]))
    assert not mixer(np.zeros((2, BLOCK), np.float32)).any()
    assert np.array_equal(mixer(np.stack([tone, -tone])), tone)
