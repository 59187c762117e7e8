"""Decoding of intact, unusual and damaged files."""

import io
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pytest

from serve_app.audio.decoding import BLOCK_SAMPLES, AudioFile
from serve_app.errors import AudioError
from serve_app.window import SAMPLE_RATE, Samples
from testing import media
from testing.paths import ROOT


def decode(data: bytes) -> Samples:
    return np.concatenate(list(AudioFile(io.BytesIO(data)).blocks()))


@pytest.mark.parametrize("rate", [8_000, 16_000, 22_050, 44_100, 48_000, 96_000])
def test_any_rate_becomes_16_khz(rate: int) -> None:
    samples = decode(media.wav(media.chirp(1.0, rate), rate))
    assert samples.dtype == np.int16
    assert abs(len(samples) - SAMPLE_RATE) <= 32
    delay_s, correlation = media.alignment(samples, media.chirp(1.0))
    assert abs(delay_s) <= 0.001
    assert correlation > 0.99


def test_channels_are_mixed() -> None:
    both = np.stack([media.chirp(1.0, 16_000), media.chirp(1.0, 16_000)], axis=1)
    one = np.stack([media.chirp(1.0, 16_000), np.zeros(16_000, np.float32)], axis=1)
    assert np.abs(decode(media.wav(both)) - decode(media.wav(media.chirp(1.0, 16_000)))).max() <= 2
    assert 0.4 < np.abs(decode(media.wav(one))).max() / np.abs(decode(media.wav(both))).max() < 0.8


def test_eight_channels_at_192_khz() -> None:
    samples = np.repeat(media.chirp(1.0, 192_000)[:, None], 8, axis=1)
    assert abs(len(decode(media.wav(samples, 192_000, "PCM_24"))) - SAMPLE_RATE) <= 32


def test_one_sample() -> None:
    assert len(decode(media.wav(np.array([0.5])))) == 1


def test_nan_and_infinity_become_silence_and_the_other_samples_are_kept() -> None:
    samples = media.chirp(1.0, 48_000)
    broken = samples.copy()
    broken[1000:1100] = np.nan
    broken[2000] = np.inf
    decoded, clean = decode(media.wav(broken, 48_000, "FLOAT")), decode(media.wav(samples, 48_000, "FLOAT"))
    assert np.abs(decoded[1000:].astype(int) - clean[1000:]).max() <= 1
    assert np.abs(decoded.astype(int)).max() <= 1.2 * np.abs(clean.astype(int)).max()


def test_the_size_of_blocks_is_bounded() -> None:
    blocks = list(AudioFile(io.BytesIO(media.wav(media.tone(60)))).blocks())
    assert len(blocks) > 5
    assert all(BLOCK_SAMPLES <= len(block) <= 2 * BLOCK_SAMPLES for block in blocks[:-1])


@pytest.mark.parametrize("channels", [1, 2])
@pytest.mark.parametrize("rate", [16_000, 44_100])
def test_a_block_is_yielded_once_its_audio_was_read(rate: int, channels: int) -> None:
    """Beyond the block: the resampler's filter, one comparison of channels, two frames and FFmpeg's buffer (32 kB each)."""
    data = media.wav(np.repeat(media.tone(60.0, rate)[:, None], channels, axis=1), rate)
    file = io.BytesIO(data)
    bytes_per_s = 2 * channels * rate
    decoded_samples = 0
    for block in AudioFile(file).blocks():
        decoded_samples += len(block)
        assert file.tell() <= bytes_per_s * (decoded_samples / SAMPLE_RATE + 0.1) + 3 * 2**15
        assert len(block) < 1.1 * BLOCK_SAMPLES


def test_a_damaged_part_is_skipped_with_a_warning() -> None:
    data = bytearray(media.encode(media.chirp(20.0, 48_000), 48_000, "mp4", "aac"))
    middle = len(data) // 2
    data[middle : middle + 3000] = np.random.default_rng(0).integers(0, 256, 3000, dtype=np.uint8).tobytes()
    audio = AudioFile(io.BytesIO(bytes(data)))
    assert sum(map(len, audio.blocks())) == pytest.approx(20 * SAMPLE_RATE, rel=0.01)
    assert audio.warnings == ("Parts of the file could not be decoded and were skipped.",)


def test_many_damaged_packets_do_not_stop_decoding() -> None:
    """A long broadcast with bad reception has thousands of damaged packets."""
    data = bytearray(media.encode(media.chirp(60.0, 48_000), 48_000, "adts", "aac"))
    starts = [place for place in range(len(data)) if data[place : place + 2] == b"\xff\xf1"]
    for start in starts[::2]:
        data[start + 8 : start + 16] = bytes(8)
    audio = AudioFile(io.BytesIO(bytes(data)))
    assert sum(map(len, audio.blocks())) > 25 * SAMPLE_RATE


@pytest.mark.parametrize("container", ["mp4", "matroska"])
def test_more_than_a_thousand_damaged_packets_in_a_row_do_not_end_the_file(container: str) -> None:
    """Only errors of the demuxer can end a file."""
    packets = 0

    def damage(all_packets: list[media.Packet]) -> list[media.Packet]:
        nonlocal packets
        packets = len(all_packets)
        return [media.broken(packet) if 100 <= number < packets - 100 else packet for number, packet in enumerate(all_packets)]

    data = media.remux(media.encode(media.chirp(30.0, 48_000), 48_000, container, "aac"), damage)
    audio = AudioFile(io.BytesIO(data))
    samples = np.concatenate(list(audio.blocks()))
    assert packets > 1_300
    assert len(samples) == pytest.approx(30 * SAMPLE_RATE, rel=0.01)
    assert audio.warnings == ("Parts of the file could not be decoded and were skipped.",)
    assert samples[-SAMPLE_RATE:].any()
    assert not samples[10 * SAMPLE_RATE : 20 * SAMPLE_RATE].any()


def test_a_truncated_file_is_decoded_to_its_end() -> None:
    data = media.wav(media.tone(10))
    assert 4 * SAMPLE_RATE < len(decode(data[: len(data) // 2])) < 6 * SAMPLE_RATE


def test_an_intact_file_has_no_warnings() -> None:
    audio = AudioFile(io.BytesIO(media.wav(media.tone(1))))
    list(audio.blocks())
    assert audio.warnings == ()


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "empty"),
        (b"This is a letter, not a recording.\n" * 100, "not an audio"),
        (bytes(10_000), "not an audio"),
        (media.wav(np.zeros(0)), "no audio samples"),
        (media.silent_video(), "no audio stream"),
    ],
    ids=["empty", "text", "zeros", "no samples", "video without sound"],
)
def test_a_file_without_audio_is_refused_with_the_reason(data: bytes, reason: str) -> None:
    with pytest.raises(AudioError, match=reason):
        decode(data)


@pytest.mark.parametrize("spool_bytes", [1, 10_000_000])
def test_a_spooled_file_on_disk_or_in_memory(spool_bytes: int) -> None:
    with tempfile.SpooledTemporaryFile(max_size=spool_bytes) as file:
        file.write(media.wav(media.tone(1)))
        file.seek(0)
        assert sum(map(len, AudioFile(cast(BinaryIO, file)).blocks())) == SAMPLE_RATE


@pytest.mark.parametrize(
    "header",
    [
        media.wav_header(16_000, codec=0x1234),
        media.wav_header(16_000, channels=65),
        media.wav_header(1),
        media.wav_header(0x7FFFFFFF),
        media.wav_header(0),
    ],
    ids=["unknown codec", "65 channels", "1 Hz", "2 GHz", "0 Hz"],
)
def test_a_header_with_invalid_values_is_refused(header: bytes) -> None:
    with pytest.raises(AudioError):
        decode(header + bytes(32_000))


def test_a_playlist_cannot_open_other_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "secret.wav").write_bytes(media.wav(media.tone(1)))
    for playlist in (b"ffconcat version 1.0\nfile secret.wav\n", b"#EXTM3U\n#EXTINF:1,\nsecret.wav\n#EXT-X-ENDLIST\n"):
        with pytest.raises(AudioError):
            decode(playlist)


def test_a_process_without_memory_is_not_a_damaged_file() -> None:
    """A file that was decoded in such a process would lack words."""
    code = """
import io, resource
import numpy as np
from serve_app.audio import decoding
from testing import media
from testing.paths import ROOT
blocks = decoding.AudioFile(io.BytesIO(media.make("m4a", media.chirp(60.0)))).blocks()
next(blocks)
resource.setrlimit(resource.RLIMIT_AS, (0, -1))
kept = []
try:
    while True:
        kept.append(bytes(8_000))
except MemoryError:
    pass
try:
    sum(map(len, blocks))
except MemoryError:
    print("out of memory")
"""
    result = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60, check=False)
    assert result.stdout == "out of memory\n", result.stderr
