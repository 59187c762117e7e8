"""Media files are distinguished from raw samples by their first bytes."""

import io

import numpy as np
import pytest

from serve_app.audio.decoding import AudioFile
from serve_app.audio.probing import PROBED_FORMATS, SNIFFED_BYTES, is_media, may_be_samples, needs_whole_file
from serve_app.errors import AudioError
from serve_app.window import Samples
from testing import media


def decodes(head: bytes) -> bool:
    """Whether FFmpeg recognises a media file by these bytes, and decodes audio from them."""
    try:
        return next(AudioFile(io.BytesIO(head), formats=PROBED_FORMATS).blocks(), None) is not None
    except AudioError:
        return False


FORMATS = {
    "wav": ("wav", "pcm_s16le"),
    "mp3": ("mp3", "libmp3lame"),
    "flac": ("flac", "flac"),
    "ogg": ("ogg", "libopus"),
    "webm": ("webm", "libopus"),
    "mp4": ("mp4", "aac"),
    "adts": ("adts", "aac"),
}
"""Container and codec of each format, by FFmpeg's names."""


@pytest.mark.parametrize("name", FORMATS)
def test_media_files_are_recognised(name: str) -> None:
    container, codec = FORMATS[name]
    data = media.encode(media.tone(2, 48_000), 48_000, container, codec)
    for head in (data[:SNIFFED_BYTES], data):
        assert is_media(head)
    for length in range(64):
        assert is_media(data[:length]) is not False
    assert needs_whole_file(data) is (name == "mp4")


def test_mp3_without_an_id3_tag() -> None:
    data = media.encode(media.tone(2, 48_000), 48_000, "mp3", "libmp3lame")
    frame = data[data.index(b"\xff\xfb") :] if b"\xff\xfb" in data else data[data.index(b"\xff\xf3") :]
    assert is_media(frame)
    assert is_media(frame[:40]) is None


@pytest.mark.parametrize("seed", range(5))
def test_raw_samples_are_not_media(seed: int) -> None:
    rng = np.random.default_rng(seed)
    samples = rng.normal(0, 2_000, 100_000).astype("<i2").tobytes()
    assert not any(is_media(samples[start : start + 4096]) for start in range(0, len(samples) - 4096, 2))


@pytest.mark.parametrize("name", [name for name in media.FORMATS if not name.startswith("mp3")])
def test_every_format_is_recognised(name: str) -> None:
    head = media.make(name, media.tone(3))[:SNIFFED_BYTES]
    assert is_media(head) or decodes(head)


@pytest.mark.parametrize(
    ("container", "codec", "rate", "muxer"),
    [
        ("mpegts", "aac", 48_000, {}),
        ("mpegts", "ac3", 48_000, {"mpegts_m2ts_mode": "1"}),
        ("w64", "pcm_s16le", 8_000, {}),
        ("voc", "pcm_s16le", 8_000, {}),
        ("ac3", "ac3", 48_000, {}),
        ("eac3", "eac3", 48_000, {}),
    ],
    ids=["ts", "m2ts", "w64", "voc", "ac3", "eac3"],
)
def test_formats_without_a_well_known_magic_number(container: str, codec: str, rate: int, muxer: dict[str, str]) -> None:
    head = media.encode(media.tone(2, rate), rate, container, codec, muxer=muxer)[:SNIFFED_BYTES]
    assert is_media(head) or decodes(head)


def test_gsm() -> None:
    """A GSM file is a sequence of frames that begin with the same half byte."""
    rng = np.random.default_rng(0)
    assert decodes(b"".join(bytes([0xD0 | int(rng.integers(16))]) + rng.bytes(32) for _ in range(200)))


def test_quicktime_without_ftyp() -> None:
    data = media.make("mov", media.tone(2))
    head = data[data.index(b"ftyp") - 4 + int.from_bytes(data[:4], "big") :]
    assert head[4:8] == b"wide"
    assert is_media(head)
    assert needs_whole_file(head)


@pytest.mark.parametrize("seed", range(50))
def test_random_bytes_are_neither_media_nor_samples(seed: int) -> None:
    head = np.random.default_rng(seed).bytes(SNIFFED_BYTES)
    assert not is_media(head)
    assert not decodes(head)
    assert not may_be_samples(head)


@pytest.mark.parametrize("head", [b"This is a letter.\n" * 200, b'{"a": [1, 2, 3]}' * 200])
def test_text_is_neither_media_nor_samples(head: bytes) -> None:
    assert not decodes(head)
    assert not may_be_samples(head)


def test_speech_silence_and_noise_may_be_samples(speech: Samples) -> None:
    noise = np.random.default_rng(0).normal(0, 2_000, SNIFFED_BYTES).astype("<i2")
    for samples in (noise, np.zeros(SNIFFED_BYTES, "<i2"), *np.array_split(speech, 50)):
        head = samples[: SNIFFED_BYTES // 2].tobytes()
        assert may_be_samples(head)
        assert not is_media(head)
        assert not decodes(head)


@pytest.mark.parametrize("head", [b"", b"\xff", b"\xff\xfb", b"ftyp", b"fLa"])
def test_more_bytes_are_needed(head: bytes) -> None:
    assert is_media(head) is None


@pytest.mark.parametrize("head", [bytes(SNIFFED_BYTES), b"\xff" * SNIFFED_BYTES, b"\xff\xfb" + bytes(SNIFFED_BYTES)])
def test_bytes_that_are_not_media(head: bytes) -> None:
    assert is_media(head) is False
