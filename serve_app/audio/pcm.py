"""Convert raw samples of microphones and telephones to int16 at 16 kHz, mono or channel by channel, incrementally."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, cast

import av
import numpy as np
import soxr
from av.audio.codeccontext import AudioCodecContext
from numpy.typing import NDArray

from serve_app.audio.mixing import MonoMixer
from serve_app.errors import AudioError
from serve_app.window import SAMPLE_RATE, Samples

Encoding = Literal["pcm_s16le", "pcm_f32le", "mulaw", "alaw"]
"""Encoding of a sample: int16 or float32, little-endian, or 8 bits of G.711."""

SAMPLE_BYTES: dict[Encoding, int] = {"pcm_s16le": 2, "pcm_f32le": 4, "mulaw": 1, "alaw": 1}
"""Size of a sample of one channel, bytes."""

CODECS: dict[Encoding, str] = {"mulaw": "pcm_mulaw", "alaw": "pcm_alaw"}
"""FFmpeg's names of the G.711 codecs."""

MIN_RATE_HZ = 4_000
"""Minimum sample rate, Hz."""

MAX_RATE_HZ = 192_000
"""Maximum sample rate, Hz."""

MAX_CHANNELS = 8
"""Maximum number of channels."""


@dataclass(frozen=True, slots=True)
class PcmFormat:
    """Format of raw samples with interleaved channels; `sample_rate` in Hz. Raises AudioError if a value is out of range."""

    encoding: Encoding = "pcm_s16le"
    sample_rate: int = SAMPLE_RATE
    channels: int = 1

    def __post_init__(self) -> None:
        if self.encoding not in SAMPLE_BYTES:
            raise AudioError(f"The encoding must be one of {', '.join(SAMPLE_BYTES)}.", param="encoding")
        if not MIN_RATE_HZ <= self.sample_rate <= MAX_RATE_HZ:
            raise AudioError(f"The sample rate must be {MIN_RATE_HZ} to {MAX_RATE_HZ} Hz.", param="sample_rate")
        if not 1 <= self.channels <= MAX_CHANNELS:
            raise AudioError(f"There may be 1 to {MAX_CHANNELS} channels.", param="channels")

    @property
    def frame_bytes(self) -> int:
        """Size of one sample of all channels, bytes."""
        return SAMPLE_BYTES[self.encoding] * self.channels


class PcmDecoder:
    """Decodes one stream. Its bytes may be split anywhere, even within a sample."""

    def __init__(self, audio_format: PcmFormat, *, separates: bool = False) -> None:
        """`separates`: the channels are not mixed: blocks are int16 [channels, samples]."""
        self._format = audio_format
        self._separates = separates
        self._rest = b""
        codec = CODECS.get(audio_format.encoding)
        self._table = None if codec is None else _table(codec)
        self._unit_bytes, self._mixer = audio_format.frame_bytes, None
        if (channels := audio_format.channels) > 1 and not separates:
            # Channels are compared in blocks, which must not depend on how the bytes are split.
            self._mixer = MonoMixer(np.full(channels, 1 / channels, np.float32), audio_format.sample_rate)
            self._unit_bytes *= self._mixer.block_samples
        is_same_rate = audio_format.sample_rate == SAMPLE_RATE
        width, rate_hz = channels if separates else 1, audio_format.sample_rate
        self._resampler = None if is_same_rate else soxr.ResampleStream(rate_hz, SAMPLE_RATE, width, "float32")

    def blocks(self, data: bytes) -> Iterator[Samples]:
        """Yield the samples that `data` completes, int16 [samples], at most a second per block.

        So the caller can let other tasks run between the blocks of a long message.
        """
        max_bytes = self._format.frame_bytes * self._format.sample_rate
        for start in range(0, len(data), max_bytes):
            yield self.push(data[start : start + max_bytes])

    def push(self, data: bytes) -> Samples:
        """The samples that `data` completes, int16 [samples].

        While a resampler starts, these are few or none; samples of several channels are held until BLOCK_S is complete.
        """
        data = self._rest + data
        whole = len(data) // self._unit_bytes * self._unit_bytes
        self._rest = data[whole:]
        return self._converted(self._samples(data[:whole]), is_last=False)

    def finish(self) -> Samples:
        """The remaining samples, int16 [samples]. An incomplete sample at the end is dropped. Call it once."""
        whole = len(self._rest) // self._format.frame_bytes * self._format.frame_bytes
        return self._converted(self._samples(self._rest[:whole]), is_last=True)

    def _samples(self, data: bytes) -> NDArray[np.float32]:
        """The mean of all channels, or one channel where they cancel out, float32 [samples] between -1 and 1; separate channels
        are [samples, channels]."""
        if self._table is not None:
            samples = self._table[np.frombuffer(data, np.uint8)]
        elif self._format.encoding == "pcm_f32le":
            samples = np.nan_to_num(np.frombuffer(data, "<f4"), nan=0.0, posinf=0.0, neginf=0.0)
        else:
            samples = np.frombuffer(data, "<i2").astype(np.float32) / 32768.0
        if self._separates:
            return samples.reshape(-1, self._format.channels)
        return samples if self._mixer is None else self._mixer(samples.reshape(-1, self._format.channels).T)

    def _converted(self, samples: NDArray[np.float32], *, is_last: bool) -> Samples:
        if self._resampler is not None:
            samples = self._resampler.resample_chunk(samples, last=is_last)
        return np.ascontiguousarray(np.round(np.clip(samples, -1.0, 32767 / 32768) * 32768.0).astype(np.int16).T)


def _table(codec: str) -> NDArray[np.float32]:
    """The sample for each byte of a G.711 codec, float32 [256] between -1 and 1, as FFmpeg decodes it."""
    decoder = cast(AudioCodecContext, AudioCodecContext.create(codec, "r"))
    decoder.sample_rate, decoder.layout = 8_000, "mono"
    frames = [frame for packet in (av.Packet(bytes(range(256))), None) for frame in decoder.decode(packet)]
    return np.concatenate([frame.to_ndarray()[0] for frame in frames]).astype(np.float32) / 32768.0
