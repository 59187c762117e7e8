"""Media files made on the spot, for tests and for tools/fuzz_media.py."""

import io
import struct
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import av
import numpy as np
import soundfile as sf
import soxr
from av.stream import Disposition
from numpy.typing import NDArray

from testing.digit_strings import DigitString, to_int16

if TYPE_CHECKING:
    Packet = av.Packet[Any]
else:
    # A generic type for type checkers only.
    Packet = av.Packet

Picture = Literal["none", "video", "uneven video", "cover"]
"""What a file shows: nothing, ten even or uneven frames a second, or one attached picture."""


@dataclass(frozen=True, slots=True)
class Format:
    """A container and a codec as FFmpeg's names, and what the encoder wants."""

    container: str
    codec: str
    rate: int = 48_000
    layout: str = "mono"
    picture: Picture = "none"
    muxer: Mapping[str, str] = field(default_factory=dict)


FORMATS = {
    "mp3": Format("mp3", "libmp3lame", 44_100),
    "mp3 without a header": Format("mp3", "libmp3lame", 44_100, muxer={"write_xing": "0"}),
    "mp3 with a cover": Format("mp3", "libmp3lame", 44_100, picture="cover"),
    "mp2": Format("mp2", "mp2"),
    "aac": Format("adts", "aac", 44_100),
    "m4a": Format("ipod", "aac", 44_100),
    "m4a with a cover": Format("mp4", "aac", 44_100, picture="cover"),
    "m4a, lossless": Format("ipod", "alac", 16_000),
    "mp4": Format("mp4", "aac", picture="video"),
    "mp4, header first": Format("mp4", "aac", muxer={"movflags": "faststart"}),
    "mp4 in fragments": Format("mp4", "aac", muxer={"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}),
    "mp4, frame rate varies": Format("mp4", "aac", picture="uneven video"),
    "mov": Format("mov", "aac", picture="video"),
    "mov, pcm": Format("mov", "pcm_s16le", 16_000),
    "mkv": Format("matroska", "aac", picture="video"),
    "mkv, frame rate varies": Format("matroska", "libopus", picture="uneven video"),
    "mkv, flac": Format("matroska", "flac"),
    "webm": Format("webm", "libopus"),
    "webm, vorbis": Format("webm", "vorbis", layout="stereo"),
    "ogg vorbis": Format("ogg", "vorbis", 44_100, "stereo"),
    "ogg flac": Format("ogg", "flac", 16_000),
    "opus": Format("ogg", "libopus"),
    "opus, six channels": Format("ogg", "libopus", layout="5.1"),
    "flac": Format("flac", "flac", 16_000),
    "wma": Format("asf", "wmav2", 44_100, "stereo"),
    "wmv": Format("asf", "wmav1", 44_100, "stereo", picture="video"),
    "amr": Format("amr", "libopencore_amrnb", 8_000),
    "3gp": Format("3gp", "libopencore_amrnb", 8_000),
    "aiff": Format("aiff", "pcm_s16be", 16_000),
    "aiff, a-law": Format("aiff", "pcm_alaw", 16_000),
    "avi": Format("avi", "libmp3lame", 44_100, picture="video"),
    "avi, pcm": Format("avi", "pcm_s16le", 16_000, picture="video"),
    "flv": Format("flv", "aac", 44_100),
    "mpeg-ts": Format("mpegts", "aac", picture="video"),
    "mpeg-ps": Format("mpeg", "mp2"),
    "ac3": Format("ac3", "ac3"),
    "caf": Format("caf", "alac", 16_000),
    "tta": Format("tta", "tta", 16_000),
    "wavpack": Format("wv", "wavpack", 16_000),
    "au": Format("au", "pcm_mulaw", 8_000),
    "w64": Format("w64", "pcm_s16le", 16_000),
    "rf64": Format("wav", "pcm_s16le", 16_000, muxer={"rf64": "always"}),
    "wav, adpcm": Format("wav", "adpcm_ms", 16_000),
    "wav, ima adpcm": Format("wav", "adpcm_ima_wav", 16_000),
}


def wav(samples: NDArray[Any], rate: int = 16_000, subtype: str = "PCM_16") -> bytes:
    """Samples [samples] or [samples, channels] as a WAV file."""
    file = io.BytesIO()
    sf.write(file, samples, rate, format="WAV", subtype=subtype)
    return file.getvalue()


def as_wav(string: DigitString) -> bytes:
    """A digit string as a WAV file, 16 kHz."""
    return wav(to_int16(string.samples))


def wav_header(rate: int, *, channels: int = 1, codec: int = 1, data_bytes: int = 32_000) -> bytes:
    """The 44 bytes before the samples of a 16-bit WAV file, with whatever is claimed of them."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, codec, channels, rate, (rate * 2 * channels) & 0xFFFFFFFF, 2 * channels, 16)
    return (
        b"RIFF" + struct.pack("<I", min(36 + data_bytes, 0xFFFFFFFF)) + b"WAVE" + form + b"data" + struct.pack("<I", data_bytes)
    )


def alignment(heard: NDArray[Any], original: NDArray[Any], rate: int = 16_000) -> tuple[float, float]:
    """How late `heard` is, in seconds, where it fits `original` best, and the correlation there."""
    size = 1 << (len(heard) + len(original)).bit_length()
    spectrum = np.fft.rfft(heard.astype(np.float64), size) * np.conj(np.fft.rfft(original, size))
    late = int(np.argmax(np.fft.irfft(spectrum, size)))
    late -= size if late > size // 2 else 0
    a, b = heard[max(0, late) :].astype(np.float64), original[max(0, -late) :]
    length = min(len(a), len(b))
    likeness = float(
        np.dot(a[:length], b[:length]) / (np.linalg.norm(heard.astype(np.float64)) * np.linalg.norm(original) + 1e-9)
    )
    return late / rate, likeness


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0) -> NDArray[np.float32]:
    """A sine at half scale, float32 [samples]."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def chirp(seconds: float, rate: int = 16_000) -> NDArray[np.float32]:
    """A tone rising by 600 Hz a second, so that no part is like another and an alignment means something, float32 [samples]."""
    t = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (200 * t + 300 * t**2))).astype(np.float32)


def make(name: str, samples: NDArray[np.float32]) -> bytes:
    """Mono float32 samples at 16 kHz in one of FORMATS."""
    wanted = FORMATS[name]
    resampled = np.asarray(soxr.resample(samples, 16_000, wanted.rate), dtype=np.float32)
    return encode(
        resampled,
        wanted.rate,
        wanted.container,
        wanted.codec,
        layout=wanted.layout,
        picture=wanted.picture,
        muxer=wanted.muxer,
    )


def encode(
    samples: NDArray[np.float32],
    rate: int,
    container: str,
    codec: str,
    *,
    layout: str = "mono",
    picture: Picture = "none",
    muxer: Mapping[str, str] = {},
    audio_start_s: float = 0.0,
) -> bytes:
    """Float32 samples [samples], the same in every channel, or [samples, channels] in another container and codec, by FFmpeg."""
    channels = av.AudioLayout(layout).nb_channels
    interleaved = np.repeat(samples, channels) if samples.ndim == 1 else samples.ravel()
    # A real file: a muxer that moves its header to the front opens it a second time.
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=container, options={"fflags": "+bitexact", **muxer}) as output:
            packets = _pictures(output, picture, len(samples) / rate)
            # FFmpeg's own vorbis encoder calls itself experimental.
            stream = output.add_stream(codec, rate=rate, options={"strict": "experimental"} if codec == "vorbis" else {})
            assert isinstance(stream, av.AudioStream)
            stream.layout, stream.bit_rate = layout, 64_000 * channels
            frame = av.AudioFrame.from_ndarray(interleaved[None], format="flt", layout=layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(audio_start_s * rate)
            for packet in [*packets, *stream.encode(frame), *stream.encode(None)]:
                output.mux(packet)
        return Path(file.name).read_bytes()


def at_s(packet: Packet) -> float:
    """When a packet is due, in seconds."""
    assert packet.pts is not None
    return float(packet.pts * packet.time_base)


def remux(data: bytes, change: Callable[[list[Packet]], list[Packet]]) -> bytes:
    """The audio packets of a file in a file of the same format once more, after `change` left some out or changed their times."""
    file = io.BytesIO()
    options = {"avoid_negative_ts": "disabled"}
    with av.open(io.BytesIO(data), "r") as source, av.open(file, "w", source.format.name.split(",")[0], options) as output:
        stream = output.add_stream_from_template(source.streams.audio[0])
        packets = change([packet for packet in source.demux(audio=0) if packet.size])
        has_new_times = any(packet.pts != packet.dts for packet in packets)
        for number, packet in enumerate(packets):
            packet.stream = stream
            # Muxers want this one to rise and never to be the later; files keep only the other.
            packet.dts = number - 10**9 if has_new_times else packet.dts
            output.mux(packet)
    return file.getvalue()


def days_of_flac(days: int = 4) -> bytes:
    """Silence at 1 kHz, 65,535 samples to a frame of 14 bytes: 20 KB a day."""
    block = 65_535
    sizes = struct.pack(">HH", block, block) + bytes(6)
    stream = (1000 << 44 | 15 << 36).to_bytes(8, "big")
    data = bytearray(b"fLaC" + bytes([0x80, 0, 0, 34]) + sizes + stream + bytes(16))
    for number in range(days * 86_400_000 // block):
        header = b"\xff\xf8" + bytes([0x70, 0x08]) + chr(number).encode("utf-8", "surrogatepass") + struct.pack(">H", block - 1)
        frame = header + bytes([_crc(header, 8, 0x07)]) + bytes(3)
        data += frame + _crc(frame, 16, 0x8005).to_bytes(2, "big")
    return bytes(data)


def _crc(data: bytes, bits: int, polynomial: int) -> int:
    value = 0
    for byte in data:
        value ^= byte << (bits - 8)
        for _ in range(8):
            value = value << 1 ^ (polynomial if value >> (bits - 1) else 0)
            value &= (1 << bits) - 1
    return value


def silent_video() -> bytes:
    """A second of video without any sound."""
    file = io.BytesIO()
    with av.open(file, "w", format="mp4") as output:
        for packet in _pictures(output, "video", 1.0):
            output.mux(packet)
    return file.getvalue()


def _pictures(output: av.container.OutputContainer, picture: Picture, seconds: float) -> list[Packet]:
    if picture == "none":
        return []
    codec = "mjpeg" if picture == "cover" else "libvpx" if output.format.name == "webm" else "mpeg4"
    stream = output.add_stream(codec, rate=10)
    assert isinstance(stream, av.VideoStream)
    stream.width, stream.height, stream.pix_fmt = 64, 64, "yuvj420p" if picture == "cover" else "yuv420p"
    if picture == "cover":
        stream.disposition = Disposition.attached_pic
    else:
        stream.time_base = stream.codec_context.time_base = Fraction(1, 100)
    packets = []
    for number in range(1 if picture == "cover" else round(10 * seconds)):
        frame = av.VideoFrame.from_ndarray(np.full((64, 64, 3), number * 20 % 256, np.uint8), format="rgb24")
        frame.pts, frame.time_base = 10 * number, Fraction(1, 100)
        if picture == "uneven video":
            frame.pts += number * number % 7
        packets += stream.encode(frame)
    return [*packets, *stream.encode(None)]
