"""Media files are distinguished from raw samples by their first bytes."""

import numpy as np
import pytest

from serve_app.audio.probing import SNIFFED_BYTES, is_media, needs_whole_file
from testing import media

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


@pytest.mark.parametrize("head", [b"", b"\xff", b"\xff\xfb", b"ftyp", b"fLa"])
def test_more_bytes_are_needed(head: bytes) -> None:
    assert is_media(head) is None


@pytest.mark.parametrize("head", [bytes(8), b"\xff" * 64, b"\xff\xfb" + bytes(SNIFFED_BYTES)])
def test_bytes_that_are_not_media(head: bytes) -> None:
    assert is_media(head) is False
