"""Convert decoded frames of any sample rate and channel layout to mono int16 at 16 kHz."""

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

from serve_app.audio.cancellation import CancellationGuard
from serve_app.window import SAMPLE_RATE, Samples

MAX_PLANES = 7
"""Maximum number of channels of a planar frame that PyAV reads. With more, it reads beyond FFmpeg's list of planes."""

MAX_GATHERED_BYTES = 2**19
"""Size of the samples that are converted at once, bytes. More would not fit into the cache of a CPU core."""

RESAMPLER_DELAY = 32
"""Samples that libswresample holds back at most, unless the rate is very low. Without them, a block would take another
conversion for its last few samples."""

FORMATS_WITH_NAN = frozenset({"flt", "dbl"})
"""Sample formats, by FFmpeg's names, that may hold NaN and infinity: those to which files of uncompressed samples are decoded."""


class Resampler:
    """Resamples one stream with libswresample. The sample rate, sample format and layout may change in the middle of it."""

    def __init__(self) -> None:
        self._converter: _Converter | None = None

    def __call__(self, frame: AudioFrame | None, wanted: int = 1) -> Iterator[Samples]:
        """Yield the samples that `frame` completes, int16 [samples]; None flushes the resampler.

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
                converter = self._converter = _Converter(frame)
            yield from converter.push(frame, wanted)


class _Converter:
    """Converts the frames of one format."""

    def __init__(self, frame: AudioFrame) -> None:
        self._format, self._layout, self._rate_hz = frame.format.name, frame.layout.name, frame.sample_rate
        channels, weights = frame.layout.nb_channels, _mix_weights(self._layout)
        self._resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
        self._mixer = _even_mixer(frame) if weights is None else None
        self._may_have_nan = self._format in FORMATS_WITH_NAN
        self._guard: CancellationGuard | None = None
        # PyAV makes no array of the other formats.
        if channels > 1 and not self._format.startswith("s64") and (frame.format.is_packed or channels <= MAX_PLANES):
            self._guard = CancellationGuard(np.ones(channels, np.float32) if weights is None else weights, self._rate_hz)
        self._fifo, self._gathered = AudioFifo(), 0
        self._delay = 0 if self._rate_hz == SAMPLE_RATE else RESAMPLER_DELAY
        self._unit = 1 if self._guard is None else self._guard.block_samples
        self._max_gathered = max(1, MAX_GATHERED_BYTES // (frame.format.bytes * channels * self._unit)) * self._unit

    def has_format_of(self, frame: AudioFrame) -> bool:
        return frame.sample_rate == self._rate_hz and frame.format.name == self._format and frame.layout.name == self._layout

    def push(self, frame: AudioFrame, wanted: int) -> Iterator[Samples]:
        # decoding.py fills gaps. Without time stamps, the resampler neither drops nor inserts samples.
        frame.pts = None
        if self._guard is None and frame.samples >= self._max_gathered:
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
            yield out.to_ndarray()[0]

    def _gathered_samples(self, unit: int) -> Iterator[Samples]:
        """Convert what was gathered, as far as it is a multiple of `unit` samples."""
        while (count := min(self._gathered // unit * unit, self._max_gathered)) > 0:
            self._gathered -= count
            yield from self._converted(cast(AudioFrame, self._fifo.read(count)))

    def _converted(self, frame: AudioFrame) -> Iterator[Samples]:
        frame = self._checked(frame)
        if self._mixer is not None:
            self._mixer.push(frame)
            frame = cast(AudioFrame, self._mixer.pull())
        for out in self._resampler.resample(frame):
            yield out.to_ndarray()[0]

    def _checked(self, frame: AudioFrame) -> AudioFrame:
        """The frame with finite samples, and with one channel in the place of all where these cancel out."""
        if self._guard is None and not self._may_have_nan:
            return frame
        original = _array(frame)
        array = original
        if self._may_have_nan and not np.isfinite(array).all():
            # A resampler would spread NaN and infinity to the samples around them.
            array = np.nan_to_num(array, nan=0.0, posinf=0.0, neginf=0.0)
        if self._guard is not None:
            channels, is_planar = frame.layout.nb_channels, frame.format.is_planar
            samples = array if is_planar else array.reshape(-1, channels).T
            if (guarded := self._guard(samples)) is not samples:
                array = guarded if is_planar else guarded.T.reshape(1, -1)
        if array is original:
            return frame
        changed = AudioFrame.from_ndarray(np.ascontiguousarray(array), format=self._format, layout=self._layout)
        changed.sample_rate = self._rate_hz
        return changed


def _array(frame: AudioFrame) -> NDArray[Any]:
    """The samples of a frame, [channels, samples] or interleaved [1, samples]."""
    if frame.format.is_planar:
        return frame.to_ndarray()
    # PyAV would make a copy.
    samples = memoryview(frame.planes[0])
    return np.frombuffer(samples, format_dtypes[frame.format.name], frame.samples * frame.layout.nb_channels)[None]


@functools.lru_cache(maxsize=256)
def _mix_weights(layout: str) -> NDArray[np.float32] | None:
    """The weight of each channel in FFmpeg's mix to mono, float32 [channels].

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
    return cast(NDArray[np.float32], mixed[0].to_ndarray()[0])


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
