"""Every format: what is in the file is heard, at the time at which a player plays it."""

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

# Where the file does not say how late its codec is, a player does not know either: ADTS, MPEG, headless MP3, WMA.
LATEST_S = 0.05


def decode(data: bytes) -> Samples:
    return np.concatenate(list(AudioFile(io.BytesIO(data)).blocks()))


def duration_s(data: bytes) -> float:
    return len(decode(data)) / SAMPLE_RATE


def assert_heard(samples: Samples, original: np.ndarray, *, within_s: float = 0.001, likeness: float = 0.95) -> None:
    """`samples` are like `original`, at its time."""
    late_s, found = media.alignment(samples, original)
    assert abs(late_s) <= within_s
    assert found > likeness


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


@pytest.mark.parametrize("name", media.FORMATS)
def test_a_format(name: str) -> None:
    samples = decode(media.make(name, media.chirp(2.0)))
    assert_heard(samples, media.chirp(2.0), within_s=LATEST_S, likeness=0.9)
    assert len(samples) / SAMPLE_RATE == pytest.approx(2.0, abs=0.09)


@pytest.mark.parametrize("name", ["mp3", "m4a", "mp4", "mov", "mkv", "opus", "webm", "ogg vorbis"])
def test_the_delay_of_a_codec_is_taken_off_where_the_file_tells_it(name: str) -> None:
    assert_heard(decode(media.make(name, media.chirp(2.0))), media.chirp(2.0))


@pytest.mark.parametrize("container", ["WAV", "WAVEX", "RF64", "W64"])
@pytest.mark.parametrize("subtype", ["PCM_U8", "PCM_16", "PCM_24", "PCM_32", "FLOAT", "DOUBLE", "ALAW", "ULAW"])
def test_any_depth_of_wav(container: str, subtype: str) -> None:
    file = io.BytesIO()
    sf.write(file, media.chirp(1.0), SAMPLE_RATE, format=container, subtype=subtype)
    samples = decode(file.getvalue())
    assert len(samples) == SAMPLE_RATE
    assert_heard(samples, media.chirp(1.0), likeness=0.98)


@pytest.mark.parametrize("claimed_bytes", [0, 0x7FFFFFFF, 0xFFFFFFFF])
def test_a_wav_written_to_a_pipe_claims_a_wrong_length(claimed_bytes: int) -> None:
    samples = np.round(media.chirp(1.0) * 32767).astype("<i2")
    assert np.array_equal(decode(media.wav_header(SAMPLE_RATE, data_bytes=claimed_bytes) + samples.tobytes()), samples)


@pytest.mark.parametrize("channels", [3, 5, 6, 7, 8, 9, 11, 16, 64])
def test_any_number_of_channels(channels: int) -> None:
    """Above eight there is no layout, and FFmpeg has no rule for mixing."""
    samples = np.zeros((SAMPLE_RATE, channels), np.float32)
    samples[:, :3] = media.chirp(1.0)[:, None]
    heard = decode(media.wav(samples))
    assert_heard(heard, media.chirp(1.0), likeness=0.99)
    assert np.abs(heard).max() >= 16384 / channels


@pytest.mark.parametrize(("container", "codec"), [("mp4", "aac"), ("ogg", "libopus"), ("flac", "flac")])
@pytest.mark.parametrize("layout", ["mono", "2.1", "3.0", "quad", "5.0", "5.1", "7.1"])
def test_any_layout(container: str, codec: str, layout: str) -> None:
    if (codec, layout) == ("libopus", "2.1"):
        pytest.skip("Opus has no such layout")
    data = media.encode(media.chirp(1.0, 48_000), 48_000, container, codec, layout=layout)
    assert_heard(decode(data), media.chirp(1.0))


def test_a_layout_without_a_rule_for_mixing() -> None:
    data = media.encode(media.chirp(1.0, 48_000), 48_000, "matroska", "pcm_s16le", layout="ambisonic 1")
    assert_heard(decode(data), media.chirp(1.0), likeness=0.99)


@pytest.mark.parametrize(
    ("container", "codec", "rates", "layouts"),
    [
        ("ogg", "libopus", (48_000, 24_000), ("mono", "mono")),
        ("ogg", "flac", (48_000, 16_000), ("mono", "stereo")),
        ("adts", "aac", (44_100, 16_000), ("mono", "stereo")),
        ("mp3", "libmp3lame", (44_100, 16_000), ("mono", "stereo")),
    ],
)
def test_a_stream_that_changes_on_the_way(container: str, codec: str, rates: tuple[int, int], layouts: tuple[str, str]) -> None:
    """Two files in one."""
    first, second = (
        media.encode(media.chirp(2.0, rate), rate, container, codec, layout=layout)
        for rate, layout in zip(rates, layouts, strict=True)
    )
    samples = decode(first + second)
    assert len(samples) / SAMPLE_RATE == pytest.approx(4.0, abs=0.2)
    for half in (samples[: len(samples) // 2], samples[len(samples) // 2 :]):
        assert_heard(half, media.chirp(2.0), within_s=0.1)


@pytest.mark.parametrize("suffix", [".mp3", ".txt", ".mp4", ".m3u8"])
def test_the_name_of_a_file_does_not_matter(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"speech{suffix}"
    path.write_bytes(media.make("ogg vorbis", media.chirp(2.0)))
    with path.open("rb") as file:
        assert sum(map(len, AudioFile(file).blocks())) == pytest.approx(2 * SAMPLE_RATE, abs=100)


def test_the_first_stream_that_can_be_decoded_is_taken() -> None:
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
        assert_heard(samples[round(start_s * SAMPLE_RATE) :], media.chirp(2.0), within_s=LATEST_S)
        assert not samples[: round((start_s - 0.1) * SAMPLE_RATE)].any()

    @pytest.mark.parametrize("name", ["webm", "opus", "mp4", "mkv, flac", "mpeg-ts", "3gp", "ogg vorbis"])
    def test_packets_that_are_not_there_are_silence(self, name: str) -> None:
        """Recorders of calls leave out what is silent."""
        data = media.make(name, np.concatenate([media.chirp(2.0), silence(2.0), media.chirp(1.0)]))
        sparse = media.remux(data, lambda packets: [p for p in packets if not 2.2 < media.at_s(p) < 3.7])
        assert len(sparse) < len(data)
        samples = decode(sparse)
        assert len(samples) / SAMPLE_RATE == pytest.approx(5.0, abs=0.09)
        assert_heard(samples[4 * SAMPLE_RATE :], media.chirp(1.0), within_s=LATEST_S, likeness=0.9)

    @pytest.mark.parametrize("name", ["webm", "mkv, flac"])
    def test_many_small_losses_do_not_add_up(self, name: str) -> None:
        """A packet or three of every second: each hole is too short to tell by itself."""
        data = media.make(name, media.chirp(30.0))
        sparse = media.remux(data, lambda packets: [p for p in packets if not 0.4 < media.at_s(p) % 1 < 0.49])
        assert len(sparse) < len(data)
        assert duration_s(sparse) == pytest.approx(30.0, abs=0.2)

    def test_lone_packets_in_a_silence_do_not_hide_it(self) -> None:
        """Opus sends one packet every 400 ms while nobody speaks."""
        data = media.make("webm", np.concatenate([media.chirp(2.0), silence(2.0), media.chirp(1.0)]))
        sparse = media.remux(
            data, lambda packets: [p for n, p in enumerate(packets) if n % 20 == 0 or not 2.2 < media.at_s(p) < 3.7]
        )
        assert_heard(decode(sparse)[4 * SAMPLE_RATE :], media.chirp(1.0))

    @pytest.mark.parametrize("nothing", [b"\x7c", b"\x44" + bytes(5)], ids=["no data", "comfort noise"])
    def test_a_telephone_that_sends_next_to_nothing_while_nobody_speaks(self, nothing: bytes) -> None:
        magic, bytes_per_frame, frames_per_s = b"#!AMR\n", 32, 50
        speech = media.make("amr", media.chirp(2.0)).removeprefix(magic)[: 2 * frames_per_s * bytes_per_frame]
        audio = AudioFile(io.BytesIO(magic + speech + 30 * frames_per_s * nothing + speech))
        samples = np.concatenate(list(audio.blocks()))
        assert len(samples) == 34 * SAMPLE_RATE
        assert_heard(samples[32 * SAMPLE_RATE :], media.chirp(2.0), within_s=LATEST_S, likeness=0.9)
        assert audio.warnings == ()

    def change_times(self, change: Callable[[int, float], float], name: str = "mkv, flac", seconds: float = 5.0) -> float:
        """How long a file seems when packet `n`, due at `t` seconds, says that it is due at `change(n, t)`."""

        def changed(packets: list[media.Packet]) -> list[media.Packet]:
            for number, packet in enumerate(packets):
                packet.pts = round(change(number, media.at_s(packet)) / packet.time_base)
            return packets

        return duration_s(media.remux(media.make(name, media.chirp(seconds)), changed))

    def test_a_single_wrong_time_is_not_followed(self) -> None:
        assert self.change_times(lambda n, t: t + 30 if n == 20 else t) == pytest.approx(5.0, abs=0.01)
        assert self.change_times(lambda n, t: max(0.0, t - 1) if n == 30 else t) == pytest.approx(5.0, abs=0.01)

    def test_unsteady_and_drifting_times_add_nothing(self) -> None:
        rng = np.random.default_rng(0)
        assert self.change_times(lambda n, t: t + rng.uniform(0, 0.15)) == pytest.approx(5.0, abs=0.01)
        assert self.change_times(lambda n, t: 1.05 * t) == pytest.approx(5.0, abs=0.01)

    def test_times_that_start_again_add_nothing(self) -> None:
        assert self.change_times(lambda n, t: t % 2) == pytest.approx(5.0, abs=0.01)

    def test_a_jump_of_days_is_a_clock_that_was_set(self) -> None:
        assert self.change_times(lambda n, t: t + (1e6 if t > 2 else 0)) == pytest.approx(5.0, abs=0.01)
        jump_s = MAX_GAP_S - 10
        assert self.change_times(lambda n, t: t + (jump_s if t > 2 else 0)) == pytest.approx(5.0 + jump_s, abs=0.01)

    def test_without_times(self) -> None:
        """AVI has none in it, and FFmpeg's guess for a file without an index must do."""
        data = media.make("avi", media.chirp(5.0))
        assert duration_s(data[: data.rindex(b"idx1")]) == pytest.approx(5.0, abs=0.09)

    def test_what_follows_a_damaged_stretch_keeps_its_time(self) -> None:
        data = bytearray(media.make("mp4", np.concatenate([media.tone(8.0), media.chirp(2.0)])))
        data[10_000:25_000] = bytes(15_000)
        audio = AudioFile(io.BytesIO(bytes(data)))
        samples = np.concatenate(list(audio.blocks()))
        assert audio.warnings
        assert_heard(samples[8 * SAMPLE_RATE :], media.chirp(2.0))


def resident_mb() -> float:
    return float(psutil.Process().memory_info().rss) / 1e6


class TestSize:
    def test_what_lies_beyond_four_gibibytes(self, tmp_path: Path) -> None:
        """A chunk of five gibibytes, a hole in the file, stands before the samples."""
        path, head_bytes, chunk_bytes, plain = tmp_path / "large.w64", 40, 5 * 2**30, io.BytesIO()
        sf.write(plain, media.chirp(1.0), SAMPLE_RATE, format="W64")
        data = plain.getvalue()
        with path.open("wb") as large:
            large.write(data[:head_bytes] + b"junk" + data[4:16] + struct.pack("<Q", chunk_bytes))
            large.seek(head_bytes + chunk_bytes)
            large.write(data[head_bytes:])
        with path.open("rb") as large:
            assert_heard(np.concatenate(list(AudioFile(large).blocks())), media.chirp(1.0))

    @pytest.mark.long
    @pytest.mark.parametrize("container", ["RF64", "W64"])
    def test_more_than_four_gibibytes_of_samples(self, tmp_path: Path, container: str) -> None:
        """Eight channels of double precision at 768 kHz: a tone at the end, everything before it a hole in the file."""
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
    def test_kilobytes_that_last_for_days_can_be_left_at_any_time(self, kind: str) -> None:
        data = media.days_of_flac() if kind == "flac" else self.days_of_gaps()
        assert len(data) < 100_000
        blocks = AudioFile(io.BytesIO(data)).blocks()
        longest = heard_samples = 0
        before_mb = 0.0
        while heard_samples < 3 * 3600 * SAMPLE_RATE:
            block = next(blocks)
            longest, heard_samples = max(longest, len(block)), heard_samples + len(block)
            before_mb = before_mb or resident_mb()
        assert longest <= 30 * BLOCK_SAMPLES
        assert resident_mb() - before_mb < 50
        blocks.close()

    @staticmethod
    def days_of_gaps() -> bytes:
        """Two packets an hour."""

        def spread(packets: list[media.Packet]) -> list[media.Packet]:
            for number, packet in enumerate(packets):
                packet.pts = number // 2 * 3_500_000 + number % 2 * 20
            return packets

        return media.remux(media.make("webm", media.tone(3.0)), spread)
