"""Make media files of the kinds that servers of speech had trouble with."""

import io
from dataclasses import dataclass

import numpy as np
import soundfile as sf
import soxr
from numpy.typing import NDArray

from testing import media
from testing.digit_strings import SAMPLE_RATE

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Amr:
    """A band of AMR."""

    tag: bytes
    """The first bytes of a file."""
    comfort_noise: bytes
    """A frame that describes the noise of a pause."""
    speech_head: bytes
    """The first byte of a frame of speech."""
    speech_bytes: int
    """Length of a frame of speech."""


NARROW = Amr(b"#!AMR\n", b"\x44" + bytes(5), b"\x3c", 32)
WIDE = Amr(b"#!AMR-WB\n", b"\x4c" + bytes(5), b"\x44", 61)

AMR_FRAME_S = 0.02
NO_DATA = b"\x7c"
"""An AMR frame that was not sent."""

AMR_PAUSE_FRAMES = 8
"""In a pause one frame in so many is sent."""


def silence(seconds: float) -> Floats:
    """Digital zeros, float32 [samples] at 16 kHz."""
    return np.zeros(round(seconds * SAMPLE_RATE), np.float32)


def one_bit_noise(seconds: float) -> Floats:
    """The noise of a 16-bit converter's lowest bit, float32 [samples] at 16 kHz."""
    values = np.random.default_rng(0).integers(-1, 2, round(seconds * SAMPLE_RATE))
    return (values / 32768).astype(np.float32)


def encode_at(rate: int, speech: Floats, container: str, codec: str, **muxer: str) -> bytes:
    """Encode float32 [samples] at 16 kHz at another sample rate, Hz. `muxer` are options of FFmpeg's muxer."""
    return media.encode(np.asarray(soxr.resample(speech, SAMPLE_RATE, rate), np.float32), rate, container, codec, muxer=muxer)


def gsm(speech: Floats) -> bytes:
    """GSM 06.10, full rate: frames without a header. `speech` is float32 [samples] at 16 kHz."""
    file = io.BytesIO()
    sf.write(file, soxr.resample(speech, SAMPLE_RATE, 8_000), 8_000, format="RAW", subtype="GSM610")
    return file.getvalue()


def quicktime_without_ftyp(speech: Floats) -> bytes:
    """An old QuickTime file: the first atom does not say what the file is. `speech` is float32 [samples] at 16 kHz."""
    data = bytearray(media.encode(speech, SAMPLE_RATE, "mov", "aac"))
    data[4:8] = b"skip"
    return bytes(data)


def amr_with_a_pause(band: Amr, frames: bytes, pause_s: float) -> bytes:
    """An AMR file of `frames` twice, with a pause between in which little is sent (discontinuous transmission)."""
    pause = (band.comfort_noise + NO_DATA * (AMR_PAUSE_FRAMES - 1)) * round(pause_s / AMR_FRAME_S / AMR_PAUSE_FRAMES)
    return band.tag + frames + pause + frames


def amr_frames(speech: Floats) -> bytes:
    """Frames of narrow-band AMR. `speech` is float32 [samples] at 16 kHz."""
    return media.make("amr", speech).removeprefix(NARROW.tag)


def random_amr_frames(band: Amr, seconds: float) -> bytes:
    """Frames of speech with random content: FFmpeg has no encoder of wide-band AMR."""
    rng = np.random.default_rng(0)
    return b"".join(band.speech_head + rng.bytes(band.speech_bytes - 1) for _ in range(round(seconds / AMR_FRAME_S)))


def ending_early(name: str, speech: Floats) -> bytes:
    """The first part of a file in the format `media.FORMATS[name]`, which states six seconds more than there are."""
    data = media.make(name, np.concatenate([speech, one_bit_noise(7)]))
    return data[: len(media.make(name, np.concatenate([speech, one_bit_noise(1)])))]
