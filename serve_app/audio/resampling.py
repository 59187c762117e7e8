"""Convert decoded frames of any sample rate and channel layout to int16 at 16 kHz, mono or channel by channel."""

import functools
from collections.abc import Iterator
from fractions import Fraction
from typing import Any, cast

import av
import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame, format_dtypes
from av.audio.resampler import AudioResampler
from av.filter import Graph
from numpy.typing import NDArray

from serve_app.audio.mixing import MonoMixer
from serve_app.window import SAMPLE_RATE, Samples

MAX_PLANES = 7
"""Maximum number of channels of a planar frame that PyAV reads. With more, it reads beyond FFmpeg's list of planes."""

MAX_CHANNELS = 64
"""Maximum number of channels, as in libswresample. More come from a forged header, and each would cost time and memory."""

MAX_GATHERED_BYTES = 2**19
"""Size of the samples that are converted at once, bytes. More would not fit into the cache of a CPU core."""

RESAMPLER_DELAY = 32
"""Samples that libswresample holds back at most, unless the rate is very low. Without them, a block would take another
conversion for its last few samples."""

FORMATS_WITH_NAN = frozenset({"flt", "dbl"})
"""Sample formats, by FFmpeg's names, that may hold NaN and infinity: those to which files of uncompressed samples are decoded."""


class Resampler:
    """Resamples one stream with libswresample. The sample rate, sample format and layout may change in the middle of it."""

    def __init__(self, channels: int | None = None) -> None:
        """`channels`: number of channels of the result, which are those of the frames; None: they are mixed to mono."""
        self._channels = channels
        self._converter: _Converter | None = None

    def __call__(self, frame: AudioFrame | None, wanted: int = 1) -> Iterator[Samples]:
        """Yield the samples that `frame` completes, int16 [samples] or [channels, samples]; None flushes the resampler.

        Frames are gathered until they make `wanted` samples or MAX_GATHERED_BYTES, because each conversion has a cost of its own.
        Samples that are not finite become 0. Raises av.FFmpegError or ValueError if FFmpeg cannot convert what was gathered.
        """
        converter = self._converter
        if converter is not None and (frame is None or not converter.has_format_of(frame)):
            self._converter = None
            yield from converter.finish()
            converter = None
        if frame is not None:
            if converter is None:
                converter = self._converter = _Converter(frame, self._channels)
            yield from converter.push(frame, wanted)


class _Converter:
    """Converts the frames of one format."""

    def __init__(self, frame: AudioFrame, separate: int | None) -> None:
        """`separate`: see Resampler."""
        self._format, self._layout, self._rate_hz = frame.format.name, frame.layout.name, frame.sample_rate
        channels = frame.layout.nb_channels
        if channels > MAX_CHANNELS:
            raise ValueError(f"It has {channels} channels.")
        self._channels, self._separate = channels, separate
        layout = "mono" if separate is None else self._layout
        self._resampler = AudioResampler(format="s16", layout=layout, rate=SAMPLE_RATE)
        self._may_have_nan = self._format in FORMATS_WITH_NAN
        self._mixer: MonoMixer | None = None
        self._even_mixer: Graph | None = None
        if separate is None:
            weights = _mix_weights(self._layout)
            # Mixed before they are resampled, several channels cost about as much as one. PyAV makes no array of the other
            # formats.
            if channels > 1 and not self._format.startswith("s64") and (frame.format.is_packed or channels <= MAX_PLANES):
                weights = np.full(channels, 1 / channels, np.float32) if weights is None else weights
                self._mixer = MonoMixer(weights, self._rate_hz)
            elif weights is None:
                self._even_mixer = _even_mixer(frame)
        self._fifo, self._gathered = AudioFifo(), 0
        self._delay = 0 if self._rate_hz == SAMPLE_RATE else RESAMPLER_DELAY
        self._unit = 1 if self._mixer is None else self._mixer.block_samples
        self._max_gathered = max(1, MAX_GATHERED_BYTES // (frame.format.bytes * channels * self._unit)) * self._unit

    def has_format_of(self, frame: AudioFrame) -> bool:
        return frame.sample_rate == self._rate_hz and frame.format.name == self._format and frame.layout.name == self._layout

    def push(self, frame: AudioFrame, wanted: int) -> Iterator[Samples]:
        # decoding.py fills gaps. Without time stamps, the resampler neither drops nor inserts samples.
        frame.pts = None
        if self._mixer is None and frame.samples >= self._max_gathered:
            # A forged frame can be huge, and the queue would hold a copy of it.
            yield from self._gathered_samples(1)
            yield from self._converted(frame)
            return
        self._fifo.write(frame)
        self._gathered += frame.samples
        whole = self._gathered // self._unit * self._unit
        if whole >= self._max_gathered or whole * SAMPLE_RATE >= (wanted + self._delay) * self._rate_hz:
            yield from self._gathered_samples(self._unit)

    def finish(self) -> Iterator[Samples]:
        yield from self._gathered_samples(1)
        for out in self._resampler.resample(None):
            yield self._samples(out)

    def _gathered_samples(self, unit: int) -> Iterator[Samples]:
        """Convert what was gathered, as far as it is a multiple of `unit` samples."""
        while (count := min(self._gathered // unit * unit, self._max_gathered)) > 0:
            self._gathered -= count
            yield from self._converted(cast(AudioFrame, self._fifo.read(count)))

    def _converted(self, frame: AudioFrame) -> Iterator[Samples]:
        for out in self._resampler.resample(self._mono(frame)):
            yield self._samples(out)

    def _samples(self, out: AudioFrame) -> Samples:
        samples: Samples = out.to_ndarray()[0]
        if self._separate is None:
            return samples
        channels = samples.reshape(-1, self._channels).T[: self._separate]
        # The layout may change in the middle of a file.
        return np.pad(channels, ((0, self._separate - len(channels)), (0, 0)))

    def _mono(self, frame: AudioFrame) -> AudioFrame:
        """The frame with finite samples, mixed to mono if that is wanted and it is one that PyAV makes an array of."""
        if self._even_mixer is not None:
            self._even_mixer.push(frame)
            return cast(AudioFrame, self._even_mixer.pull())
        if self._mixer is None and not self._may_have_nan:
            return frame
        array = _array(frame)
        if self._mixer is not None and array.dtype == np.float64:
            with np.errstate(over="ignore"):
                array = array.astype(np.float32)
        has_nan = self._may_have_nan and not np.isfinite(array).all()
        if has_nan:
            # A resampler would spread NaN and infinity to the samples around them.
            array = np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)
        if self._mixer is not None:
            samples = array if frame.format.is_planar else array.reshape(-1, frame.layout.nb_channels).T
            return self._frame(_as_fraction(self._mixer(samples), array.dtype)[None], "flt", "mono")
        return self._frame(array, self._format, self._layout) if has_nan else frame

    def _frame(self, array: NDArray[Any], sample_format: str, layout: str) -> AudioFrame:
        frame = AudioFrame.from_ndarray(array, format=sample_format, layout=layout)
        frame.sample_rate = self._rate_hz
        return frame


def _array(frame: AudioFrame) -> NDArray[Any]:
    """The samples of a frame, [channels, samples] or interleaved [1, samples]."""
    if frame.format.is_planar:
        return frame.to_ndarray()
    # PyAV would make a copy.
    samples = memoryview(frame.planes[0])
    return np.frombuffer(samples, format_dtypes[frame.format.name], frame.samples * frame.layout.nb_channels)[None]


def _as_fraction(samples: NDArray[np.float32], dtype: "np.dtype[Any]") -> NDArray[np.float32]:
    """Samples in the unit of `dtype` as fractions of full scale, float32 [samples]."""
    if dtype.kind == "f":
        return samples
    full_scale = 2.0 ** (8 * dtype.itemsize - 1)
    return (samples - full_scale if dtype.kind == "u" else samples) * np.float32(1 / full_scale)


@functools.lru_cache(maxsize=256)
def _mix_weights(layout: str) -> NDArray[np.float32] | None:
    """The weight of each channel in FFmpeg's mix to mono, which is never louder than full scale, float32 [channels].

    None if FFmpeg has no rule for the layout: for ambisonics, and for most layouts above eight channels.
    """
    try:
        # One unit pulse per channel, each at a time of its own.
        pulses = np.eye(av.AudioLayout(layout).nb_channels, dtype=np.float32)
        probe = AudioFrame.from_ndarray(pulses.reshape(1, -1), format="flt", layout=layout)
        probe.sample_rate = SAMPLE_RATE
        mixed = AudioResampler(format="flt", layout="mono", rate=SAMPLE_RATE).resample(probe)
    except (av.FFmpegError, ValueError):
        return None
    weights: NDArray[np.float32] = mixed[0].to_ndarray()[0]
    # FFmpeg does that for integers, and its mix of floats would be clipped later.
    weights /= max(np.float32(1), weights.sum())
    return weights


def _even_mixer(frame: AudioFrame) -> Graph:
    """A filter graph that mixes frames of the format of `frame` to mono, with equal weights for all channels."""
    channels = frame.layout.nb_channels
    graph = Graph()
    source = graph.add_abuffer(
        sample_rate=frame.sample_rate,
        format=frame.format,
        layout=frame.layout,
        time_base=Fraction(1, frame.sample_rate),
    )
    mix = graph.add("pan", "mono|c0=" + "+".join(f"{1 / channels:.6f}*c{channel}" for channel in range(channels)))
    graph.link_nodes(source, mix, graph.add("abuffersink")).configure()
    return graph
