"""Generate test signals, and encode them as media files or raw samples."""

import io
import struct
import tempfile
from collections.abc import Callable, Mapping, Sequence
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

from serve_app.audio.pcm import Encoding
from testing.digit_strings import DigitString, to_int16

if TYPE_CHECKING:
    Packet = av.Packet[Any]
else:
    # av.Packet is generic only for type checkers.
    Packet = av.Packet

Picture = Literal["none", "video", "uneven video", "cover"]
"""Pictures of a file: none, video at 10 frames per second, video at a variable frame rate, or one attached cover image."""


@dataclass(frozen=True, slots=True)
class Format:
    """A container and a codec, by FFmpeg's names, and their parameters."""

    container: str
    codec: str
    rate: int = 48_000
    """Sample rate, Hz."""
    layout: str = "mono"
    """Channel layout, by FFmpeg's name."""
    picture: Picture = "none"
    muxer: Mapping[str, str] = field(default_factory=dict)
    """Options of FFmpeg's muxer."""


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
"""Formats for `make`, by name."""


def wav(samples: NDArray[Any], rate: int = 16_000, subtype: str = "PCM_16") -> bytes:
    """Encode [samples] or [samples, channels] as a WAV file. `rate` is in Hz, `subtype` is a name of libsndfile."""
    file = io.BytesIO()
    sf.write(file, samples, rate, format="WAV", subtype=subtype)
    return file.getvalue()


def as_wav(string: DigitString) -> bytes:
    """Encode a digit string as a WAV file, 16 kHz."""
    return wav(to_int16(string.samples))


def pcm(samples: NDArray[np.float32], encoding: Encoding, channels: int = 1) -> bytes:
    """Encode float32 [samples] as raw samples with interleaved channels, all the same; or those of [samples, channels]."""
    interleaved = np.repeat(samples, channels) if samples.ndim == 1 else samples.ravel()
    if encoding == "pcm_f32le":
        return interleaved.astype("<f4").tobytes()
    if encoding == "pcm_s16le":
        return np.round(interleaved * 32767).astype("<i2").tobytes()
    file = io.BytesIO()
    sf.write(file, interleaved, 8_000, format="RAW", subtype={"mulaw": "ULAW", "alaw": "ALAW"}[encoding])
    return file.getvalue()


def wav_header(rate: int, *, channels: int = 1, codec: int = 1, data_bytes: int = 32_000) -> bytes:
    """The header of a 16-bit WAV file, 44 bytes. The values may be invalid or differ from the samples that follow."""
    form = struct.pack("<4sIHHIIHH", b"fmt ", 16, codec, channels, rate, (rate * 2 * channels) & 0xFFFFFFFF, 2 * channels, 16)
    return (
        b"RIFF" + struct.pack("<I", min(36 + data_bytes, 0xFFFFFFFF)) + b"WAVE" + form + b"data" + struct.pack("<I", data_bytes)
    )


def alignment(decoded: NDArray[Any], original: NDArray[Any], rate: int = 16_000) -> tuple[float, float]:
    """Delay of `decoded` relative to `original` at the peak of their cross-correlation, seconds, and their correlation there.

    The delay is negative if `decoded` is early. A correlation of 1 means that the signals differ in scale alone.
    """
    signal = decoded.astype(np.float64)
    size = 1 << (len(signal) + len(original)).bit_length()
    spectrum = np.fft.rfft(signal, size) * np.conj(np.fft.rfft(original, size))
    delay = int(np.argmax(np.fft.irfft(spectrum, size)))
    delay -= size if delay > size // 2 else 0
    a, b = signal[max(0, delay) :], original[max(0, -delay) :]
    length = min(len(a), len(b))
    correlation = float(np.dot(a[:length], b[:length]) / (np.linalg.norm(signal) * np.linalg.norm(original) + 1e-9))
    return delay / rate, correlation


def tone(seconds: float, rate: int = 16_000, hertz: float = 440.0) -> NDArray[np.float32]:
    """A sine wave of amplitude 0.5, float32 [samples]. `rate` is in Hz."""
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def chirp(seconds: float, rate: int = 16_000) -> NDArray[np.float32]:
    """A sine sweep of amplitude 0.5, from 200 Hz upwards by 600 Hz per second, float32 [samples]. `rate` is in Hz.

    No two parts of it are alike, so `alignment` finds a single delay.
    """
    t = np.arange(round(seconds * rate)) / rate
    return (0.5 * np.sin(2 * np.pi * (200 * t + 300 * t**2))).astype(np.float32)


def make(name: str, samples: NDArray[np.float32]) -> bytes:
    """Encode mono samples at 16 kHz, float32 [samples], in the format `FORMATS[name]`."""
    target = FORMATS[name]
    resampled = np.asarray(soxr.resample(samples, 16_000, target.rate), dtype=np.float32)
    return encode(
        resampled,
        target.rate,
        target.container,
        target.codec,
        layout=target.layout,
        picture=target.picture,
        muxer=target.muxer,
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
    bit_rate: int | None = None,
) -> bytes:
    """Encode samples with FFmpeg: float32 [samples, channels], or [samples] for the same signal in every channel.

    `rate` is in Hz. The audio starts `audio_start_s` seconds after the start of the file. `bit_rate` is in bits per second; None:
    64,000 for each channel.
    """
    channels = av.AudioLayout(layout).nb_channels
    interleaved = np.repeat(samples, channels) if samples.ndim == 1 else samples.ravel()
    # The file needs a path, because a muxer that moves its header to the front opens it a second time.
    with tempfile.NamedTemporaryFile() as file:
        with av.open(file.name, "w", format=container, options={"fflags": "+bitexact", **muxer}) as output:
            packets = _pictures(output, picture, len(samples) / rate)
            # FFmpeg declares its own Vorbis encoder experimental.
            stream = output.add_stream(codec, rate=rate, options={"strict": "experimental"} if codec == "vorbis" else {})
            assert isinstance(stream, av.AudioStream)
            stream.layout, stream.bit_rate = layout, bit_rate or 64_000 * channels
            frame = av.AudioFrame.from_ndarray(interleaved[None], format="flt", layout=layout)
            frame.sample_rate, frame.time_base, frame.pts = rate, Fraction(1, rate), round(audio_start_s * rate)
            for packet in [*packets, *stream.encode(frame), *stream.encode(None)]:
                output.mux(packet)
        return Path(file.name).read_bytes()


def at_s(packet: Packet) -> float:
    """Presentation time of a packet, seconds."""
    assert packet.pts is not None
    return float(packet.pts * packet.time_base)


def broken(packet: Packet) -> Packet:
    """A packet with the times of `packet` and content that no AAC decoder accepts."""
    changed = av.Packet(b"\x5a" * packet.size)
    changed.pts, changed.dts, changed.duration, changed.time_base = packet.pts, packet.dts, packet.duration, packet.time_base
    return changed


def remux(data: bytes, change: Callable[[list[Packet]], list[Packet]]) -> bytes:
    """Copy the audio packets to a new file of the same format. `change` may remove packets or change their time stamps."""
    file = io.BytesIO()
    options = {"avoid_negative_ts": "disabled"}
    with av.open(io.BytesIO(data), "r") as source, av.open(file, "w", source.format.name.split(",")[0], options) as output:
        stream = output.add_stream_from_template(source.streams.audio[0])
        packets = change([packet for packet in source.demux(audio=0) if packet.size])
        has_new_times = any(packet.pts != packet.dts for packet in packets)
        for number, packet in enumerate(packets):
            packet.stream = stream
            # Muxers require decoding times that increase and are not later than the presentation times.
            packet.dts = number - 10**9 if has_new_times else packet.dts
            output.mux(packet)
    return file.getvalue()


def with_tracks(container: str, tracks: Sequence[NDArray[np.float32]], default: int | None) -> bytes:
    """A file with several audio tracks, float32 [samples] at 16 kHz each. The track `default` is marked so."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        sources = [av.open(io.BytesIO(encode(track, 16_000, "flac", "flac")), "r") for track in tracks]
        streams = [output.add_stream_from_template(source.streams.audio[0]) for source in sources]
        for number, stream in enumerate(streams):
            stream.disposition = Disposition.default if number == default else Disposition(0)
        for source, stream in zip(sources, streams, strict=True):
            for packet in source.demux(audio=0):
                packet.stream = stream
                if packet.size:
                    output.mux(packet)
    return file.getvalue()


def days_of_flac(days: int = 4) -> bytes:
    """A FLAC file of silence at 1 kHz. A frame of 14 bytes lasts 65,535 samples, so a day takes about 20 kB."""
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
    """One second of video without an audio stream."""
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
