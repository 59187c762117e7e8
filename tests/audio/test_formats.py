"""Every media format is decoded, and each sample has the time at which a player plays it."""

import io
import struct
from collections.abc import Callable
from pathlib import Path

import av
import numpy as np
import psutil
import pytest
import soundfile as sf

from serve_app.audio.decoding import BLOCK_SAMPLES, MAX_GAP_S, AudioFile
from serve_app.errors import AudioError
from serve_app.window import SAMPLE_RATE, Samples
from testing import media
from testing.paths import DATA

MAX_CODEC_DELAY_S = 0.05
"""Maximum delay of a codec, seconds. ADTS, MPEG, WMA and MP3 without a header do not state theirs, so it cannot be removed."""


def decode(data: bytes) -> Samples:
    return np.concatenate(list(AudioFile(io.BytesIO(data)).blocks()))


def duration_s(data: bytes) -> float:
    return len(decode(data)) / SAMPLE_RATE


def assert_aligned(samples: Samples, original: np.ndarray, *, within_s: float = 0.001, min_correlation: float = 0.95) -> None:
    """`samples` correlate with `original`, with a delay of at most `within_s` seconds."""
    delay_s, correlation = media.alignment(samples, original)
    assert abs(delay_s) <= within_s
    assert correlation > min_correlation


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


@pytest.mark.parametrize("name", media.FORMATS)
def test_every_format_is_decoded(name: str) -> None:
    samples = decode(media.make(name, media.chirp(2.0)))
    assert_aligned(samples, media.chirp(2.0), within_s=MAX_CODEC_DELAY_S, min_correlation=0.9)
    assert len(samples) / SAMPLE_RATE == pytest.approx(2.0, abs=0.09)


@pytest.mark.parametrize("name", ["mp3", "m4a", "mp4", "mov", "mkv", "opus", "webm", "ogg vorbis"])
def test_the_delay_of_a_codec_is_removed_if_the_file_states_it(name: str) -> None:
    assert_aligned(decode(media.make(name, media.chirp(2.0))), media.chirp(2.0))


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64", "W64"])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW"])
def test_any_sample_format_of_wav(container: str, subtype: str) -> None:
    file = io.BytesIO()
    sf.write(file, media.chirp(1.0), SAMPLE_RATE, format=container, subtype=subtype)
    samples = decode(file.getvalue())
    assert len(samples) == SAMPLE_RATE
    assert_aligned(samples, media.chirp(1.0), min_correlation=0.98)


@pytest.mark.parametrize("claimed_bytes", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_file_with_a_wrong_length_in_its_header(claimed_bytes: int) -> None:
    """A program that writes a WAV file to a pipe does not know its length in advance."""
    samples = np.round(media.chirp(1.0) * 32767).astype("<i2")
    assert np.array_equal(decode(media.wav_header(SAMPLE_RATE, data_bytes=claimed_bytes) + samples.tobytes()), samples)


@pytest.mark.parametrize("repeats", [1, 20])
def test_dts_that_a_wav_file_calls_pcm_is_decoded(repeats: int) -> None:
    """As on DTS CDs. The file is a tone of 440 Hz; of the longer one, FFmpeg sees a part when it opens it."""
    dts = (DATA / "tone.dts").read_bytes() * repeats
    samples = decode(media.wav_header(44_100, channels=2, data_bytes=len(dts)) + dts)
    assert len(samples) / SAMPLE_RATE == pytest.approx(0.2 * repeats, abs=0.02 * repeats)
    assert np.argmax(np.abs(np.fft.rfft(samples))) * SAMPLE_RATE / len(samples) == pytest.approx(440, abs=5)


@pytest.mark.parametrize("channels", [3, 5, 6, 7, 8, 9, 11, 16, 64])
def test_any_number_of_channels(channels: int) -> None:
    """FFmpeg has no mixing rule for most layouts above eight channels."""
    samples = np.zeros((SAMPLE_RATE, channels), np.float32)
    samples[:, :3] = media.chirp(1.0)[:, None]
    mixed = decode(media.wav(samples))
    assert_aligned(mixed, media.chirp(1.0), min_correlation=0.99)
    assert np.abs(mixed).max() >= 16384 / channels


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("ogg", "libopus"), ("flac", "flac")])
@pytest.mark.parametrize("layout", ["mono", "2.1", "3.0", "quad", "5.0", "5.1", "7.1"])
def test_any_layout(container: str, codec: str, layout: str) -> None:
    if (codec, layout) == ("libopus", "2.1"):
        pytest.skip("Opus has no such layout")
    data = media.encode(media.chirp(1.0, 48_000), 48_000, container, codec, layout=layout)
    assert_aligned(decode(data), media.chirp(1.0))


def test_a_layout_without_a_mixing_rule() -> None:
    data = media.encode(media.chirp(1.0, 48_000), 48_000, "matroska", "pcm_s16le", layout="ambisonic 1")
    assert_aligned(decode(data), media.chirp(1.0), min_correlation=0.99)


@pytest.mark.parametrize(
    ("container", "codec", "rates", "layouts"),
    [
        ("ogg", "libopus", (48_000, 24_000), ("mono", "mono")),
        ("ogg", "flac", (48_000, 16_000), ("mono", "stereo")),
        ("adts", "aac", (44_100, 16_000), ("mono", "stereo")),
        ("mp3", "libmp3lame", (44_100, 16_000), ("mono", "stereo")),
    ],
)
def test_a_format_change_in_mid_stream(container: str, codec: str, rates: tuple[int, int], layouts: tuple[str, str]) -> None:
    """Two concatenated files of different sample rates or layouts."""
    first, second = (
        media.encode(media.chirp(2.0, rate), rate, container, codec, layout=layout)
        for rate, layout in zip(rates, layouts, strict=True)
    )
    samples = decode(first + second)
    assert len(samples) / SAMPLE_RATE == pytest.approx(4.0, abs=0.2)
    for half in (samples[: len(samples) // 2], samples[len(samples) // 2 :]):
        assert_aligned(half, media.chirp(2.0), within_s=0.1)


@pytest.mark.parametrize("suffix", [".mp3", ".txt", ".mp4", ".m3u8"])
def test_the_name_of_a_file_does_not_matter(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"speech{suffix}"
    path.write_bytes(media.make("ogg vorbis", media.chirp(2.0)))
    with path.open("rb") as file:
        assert sum(map(len, AudioFile(file).blocks())) == pytest.approx(2 * SAMPLE_RATE, abs=100)


def test_the_first_audio_stream_with_a_decoder_is_decoded() -> None:
    data = media.make("mkv, flac", media.chirp(2.0))
    with pytest.raises(AudioError, match="codec"):
        decode(data.replace(b"A_FLAC", b"A_NONE"))
    file = io.BytesIO()
    with av.open(io.BytesIO(data), "r") as source, av.open(file, "w", format="matroska") as output:
        streams = [output.add_stream_from_template(source.streams.audio[0]) for _ in range(2)]
        for packet in source.demux(audio=0):
            packet.stream = streams[1]
            if packet.size:
                output.mux(packet)
    assert duration_s(file.getvalue().replace(b"A_FLAC", b"A_NONE", 1)) == pytest.approx(2.0, abs=0.01)


class TestTimes:
    @pytest.mark.parametrize("container", ["matroska", "mpegts", "mp4", "mov"])
    @pytest.mark.parametrize("start_s", [1.5, 8.0])
    def test_audio_that_starts_after_the_video(self, container: str, start_s: float) -> None:
        data = media.encode(media.chirp(2.0, 48_000), 48_000, container, "aac", picture="video", audio_start_s=start_s)
        samples = decode(data)
        assert_aligned(samples[round(start_s * SAMPLE_RATE) :], media.chirp(2.0), within_s=MAX_CODEC_DELAY_S)
        assert not samples[: round((start_s - 0.1) * SAMPLE_RATE)].any()

    @pytest.mark.parametrize("name", ["webm", "opus", "mp4", "mkv, flac", "mpeg-ts", "3gp", "ogg vorbis"])
    def test_missing_packets_become_silence(self, name: str) -> None:
        """Call recorders do not store packets of silence."""
        data = media.make(name, np.concatenate([media.chirp(2.0), silence(2.0), media.chirp(1.0)]))
        sparse = media.remux(data, lambda packets: [p for p in packets if not 2.2 < media.at_s(p) < 3.7])
        assert len(sparse) < len(data)
        samples = decode(sparse)
        assert len(samples) / SAMPLE_RATE == pytest.approx(5.0, abs=0.09)
        assert_aligned(samples[4 * SAMPLE_RATE :], media.chirp(1.0), within_s=MAX_CODEC_DELAY_S, min_correlation=0.9)

    @pytest.mark.parametrize("name", ["webm", "mkv, flac"])
    def test_many_short_gaps_do_not_shift_the_audio(self, name: str) -> None:
        """Each gap is shorter than MIN_GAP_S. Gaps add up until the sum is long enough to be filled."""
        data = media.make(name, media.chirp(30.0))
        sparse = media.remux(data, lambda packets: [p for p in packets if not 0.4 < media.at_s(p) % 1 < 0.49])
        assert len(sparse) < len(data)
        assert duration_s(sparse) == pytest.approx(30.0, abs=0.2)

    def test_single_packets_within_a_gap(self) -> None:
        """Opus sends one packet every 400 ms during silence (discontinuous transmission)."""
        data = media.make("webm", np.concatenate([media.chirp(2.0), silence(2.0), media.chirp(1.0)]))
        sparse = media.remux(
            data, lambda packets: [p for n, p in enumerate(packets) if n % 20 == 0 or not 2.2 < media.at_s(p) < 3.7]
        )
        assert_aligned(decode(sparse)[4 * SAMPLE_RATE :], media.chirp(1.0))

    @pytest.mark.parametrize("silent_frame", [b"\x7c", b"\x44" + bytes(5)], ids=["no data", "comfort noise"])
    def test_discontinuous_transmission_of_amr(self, silent_frame: bytes) -> None:
        magic, bytes_per_frame, frames_per_s = b"#!AMR\n", 32, 50
        speech = media.make("amr", media.chirp(2.0)).removeprefix(magic)[: 2 * frames_per_s * bytes_per_frame]
        audio = AudioFile(io.BytesIO(magic + speech + 30 * frames_per_s * silent_frame + speech))
        samples = np.concatenate(list(audio.blocks()))
        assert len(samples) == 34 * SAMPLE_RATE
        assert_aligned(samples[32 * SAMPLE_RATE :], media.chirp(2.0), within_s=MAX_CODEC_DELAY_S, min_correlation=0.9)
        assert audio.warnings == ()

    def changed_duration_s(self, change: Callable[[int, float], float], name: str = "mkv, flac", seconds: float = 5.0) -> float:
        """Decoded duration of a file, seconds, after the time `t` of each packet `n` is changed to `change(n, t)` seconds."""

        def changed(packets: list[media.Packet]) -> list[media.Packet]:
            for number, packet in enumerate(packets):
                packet.pts = round(change(number, media.at_s(packet)) / packet.time_base)
            return packets

        return duration_s(media.remux(media.make(name, media.chirp(seconds)), changed))

    def test_a_single_wrong_time_stamp_is_ignored(self) -> None:
        assert self.changed_duration_s(lambda n, t: t + 30 if n == 20 else t) == pytest.approx(5.0, abs=0.01)
        assert self.changed_duration_s(lambda n, t: max(0.0, t - 1) if n == 30 else t) == pytest.approx(5.0, abs=0.01)

    def test_jitter_and_drift_of_time_stamps_are_ignored(self) -> None:
        rng = np.random.default_rng(0)
        assert self.changed_duration_s(lambda n, t: t + rng.uniform(0, 0.15)) == pytest.approx(5.0, abs=0.01)
        assert self.changed_duration_s(lambda n, t: 1.05 * t) == pytest.approx(5.0, abs=0.01)

    def test_time_stamps_that_restart_are_ignored(self) -> None:
        assert self.changed_duration_s(lambda n, t: t % 2) == pytest.approx(5.0, abs=0.01)

    def test_a_jump_longer_than_the_maximum_gap_is_ignored(self) -> None:
        assert self.changed_duration_s(lambda n, t: t + (1e6 if t > 2 else 0)) == pytest.approx(5.0, abs=0.01)
        jump_s = MAX_GAP_S - 10
        assert self.changed_duration_s(lambda n, t: t + (jump_s if t > 2 else 0)) == pytest.approx(5.0 + jump_s, abs=0.01)

    def test_a_file_without_time_stamps(self) -> None:
        """AVI stores no time stamps. Without an index, FFmpeg estimates them."""
        data = media.make("avi", media.chirp(5.0))
        assert duration_s(data[: data.rindex(b"idx1")]) == pytest.approx(5.0, abs=0.09)

    def test_audio_after_a_damaged_part_keeps_its_time(self) -> None:
        data = bytearray(media.make("mp4", np.concatenate([media.tone(8.0), media.chirp(2.0)])))
        data[10_000:25_000] = bytes(15_000)
        audio = AudioFile(io.BytesIO(bytes(data)))
        samples = np.concatenate(list(audio.blocks()))
        assert audio.warnings
        assert_aligned(samples[8 * SAMPLE_RATE :], media.chirp(2.0))


def resident_mb() -> float:
    """Resident memory of this process, MB."""
    return float(psutil.Process().memory_info().rss) / 1e6


class TestSize:
    def test_samples_after_the_first_four_gibibytes(self, tmp_path: Path) -> None:
        """A chunk of 5 GiB precedes the samples. It is a hole in a sparse file."""
        path, head_bytes, chunk_bytes, plain = tmp_path / "large.w64", 40, 5 * 2**30, io.BytesIO()
        sf.write(plain, media.chirp(1.0), SAMPLE_RATE, format="W64")
        data = plain.getvalue()
        with path.open("wb") as large:
            large.write(data[:head_bytes] + b"junk" + data[4:16] + struct.pack("<Q", chunk_bytes))
            large.seek(head_bytes + chunk_bytes)
            large.write(data[head_bytes:])
        with path.open("rb") as large:
            assert_aligned(np.concatenate(list(AudioFile(large).blocks())), media.chirp(1.0))

    @pytest.mark.long
    @pytest.mark.parametrize("container", ["RF64", "W64"])
    def test_more_than_four_gibibytes_of_samples(self, tmp_path: Path, container: str) -> None:
        """Eight channels of float64 at 768 kHz: a hole in a sparse file, then a tone at the end."""
        path, rate, frame_bytes, frames = tmp_path / "large", 768_000, 64, 70_000_000
        with sf.SoundFile(path, "w", rate, 8, "DOUBLE", format=container) as file:
            file.write(np.zeros((1, 8)))
            file.seek(frames)
            file.write(np.repeat(media.tone(1.0, rate)[:, None], 8, axis=1))
        assert path.stat().st_size > frames * frame_bytes > 2**32
        total_samples, peak, before_mb, grown_mb = 0, 0, resident_mb(), 0.0
        with path.open("rb") as large:
            for block in AudioFile(large).blocks():
                total_samples, peak = total_samples + len(block), int(np.abs(block).max())
                grown_mb = max(grown_mb, resident_mb() - before_mb)
        assert total_samples / SAMPLE_RATE == pytest.approx(frames / rate + 1, abs=0.01)
        assert peak > 10_000
        assert grown_mb < 300

    @pytest.mark.parametrize("kind", ["flac", "gaps"])
    def test_a_small_file_that_lasts_for_days_takes_little_memory(self, kind: str) -> None:
        data = media.days_of_flac() if kind == "flac" else self.days_of_gaps()
        assert len(data) < 100_000
        blocks = AudioFile(io.BytesIO(data)).blocks()
        max_block_samples = decoded_samples = 0
        before_mb = 0.0
        while decoded_samples < 3 * 3600 * SAMPLE_RATE:
            block = next(blocks)
            max_block_samples, decoded_samples = max(max_block_samples, len(block)), decoded_samples + len(block)
            before_mb = before_mb or resident_mb()
        assert max_block_samples <= 30 * BLOCK_SAMPLES
        assert resident_mb() - before_mb < 50
        blocks.close()

    @staticmethod
    def days_of_gaps() -> bytes:
        """A WebM file with two packets in every 3,500 seconds."""

        def spread(packets: list[media.Packet]) -> list[media.Packet]:
            for number, packet in enumerate(packets):
                packet.pts = number // 2 * 3_500_000 + number % 2 * 20
            return packets

        return media.remux(media.make("webm", media.tone(3.0)), spread)
