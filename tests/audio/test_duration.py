"""The duration that a file states: announced, and compared with what was decoded."""

import io

import pytest

from serve_app.audio.decoding import AudioFile
from serve_app.window import SAMPLE_RATE
from testing import media
from testing.odd_media import NARROW, WIDE, Amr, amr_with_a_pause, random_amr_frames

SHORT = "The file ends before the duration that it states."

STATING = ["mp3", "mp3 with a cover", "mp4, header first", "mkv", "mkv, flac", "webm", "flac", "aiff", "flv", "tta", "au"]
"""Formats whose header states the duration."""

NO_DURATION = ["mp3 without a header", "mp2", "aac", "amr", "ac3", "opus", "mpeg-ts", "w64", "rf64"]
"""Formats that state none, or one that says nothing about missing audio."""


def decoded(data: bytes) -> tuple[AudioFile, float]:
    """The file, all of whose blocks are read, and its decoded duration, seconds."""
    audio = AudioFile(io.BytesIO(data))
    return audio, sum(map(len, audio.blocks())) / SAMPLE_RATE


@pytest.mark.parametrize("name", STATING)
def test_a_file_that_ends_early_has_a_warning(name: str) -> None:
    data = media.make(name, media.chirp(6.0))
    audio, decoded_s = decoded(data[: len(data) // 2])
    assert SHORT in audio.warnings
    assert 2.0 < decoded_s < 4.0


@pytest.mark.parametrize("name", NO_DURATION)
def test_a_file_that_states_no_duration_has_no_such_warning(name: str) -> None:
    data = media.make(name, media.chirp(6.0))
    assert SHORT not in decoded(data[: len(data) // 2])[0].warnings


@pytest.mark.parametrize("name", media.FORMATS)
def test_a_complete_file_has_no_warning_and_announces_its_duration(name: str) -> None:
    audio, decoded_s = decoded(media.make(name, media.chirp(3.0)))
    assert audio.warnings == ()
    assert audio.announced_s == pytest.approx(decoded_s, abs=0.2)


@pytest.mark.parametrize(("container", "codec"), [("matroska", "flac"), ("webm", "libopus"), ("mp4", "aac")])
@pytest.mark.parametrize("start_s", [3.0, 3600.0])
def test_the_time_before_the_first_time_stamp_is_not_missing(container: str, codec: str, start_s: float) -> None:
    audio, decoded_s = decoded(media.encode(media.chirp(6.0, 48_000), 48_000, container, codec, audio_start_s=start_s))
    assert audio.warnings == ()
    assert decoded_s == pytest.approx(6.0, abs=0.1)
    assert audio.announced_s == pytest.approx(6.0, abs=0.1)


def test_an_mp3_file_of_a_varying_bit_rate_without_a_header() -> None:
    """FFmpeg guesses the duration from the bit rate of the first frames."""
    low, high = (
        media.encode(media.tone(20.0, 44_100), 44_100, "mp3", "libmp3lame", muxer={"write_xing": "0"}, bit_rate=bit_rate)
        for bit_rate in (32_000, 256_000)
    )
    audio, decoded_s = decoded(low + high)
    assert SHORT not in audio.warnings
    assert audio.announced_s == pytest.approx(decoded_s, rel=0.05)


@pytest.mark.parametrize("band", [NARROW, WIDE], ids=["narrow", "wide"])
def test_amr_with_discontinuous_transmission(band: Amr) -> None:
    audio, decoded_s = decoded(amr_with_a_pause(band, random_amr_frames(band, 2.0), 9.92))
    assert audio.warnings == ()
    assert decoded_s == pytest.approx(4 + 9.92, abs=0.1)
    assert audio.announced_s == pytest.approx(decoded_s, rel=0.05)


def test_a_wav_file_written_to_a_pipe() -> None:
    class Pipe(io.BytesIO):
        def seekable(self) -> bool:
            return False

    audio = AudioFile(Pipe(media.wav_header(SAMPLE_RATE, data_bytes=0x7FFFFFFF) + bytes(64_000)))
    assert sum(map(len, audio.blocks())) == 2 * SAMPLE_RATE
    assert audio.warnings == ()
