"""Convert decoded frames of any sample rate and channel layout to mono int16 at 16 kHz."""

import functools
from collections.abc import Iterator
from fractions import Fraction
from typing import cast

import av
import numpy as np
from av.audio.fifo import AudioFifo
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.filter import Graph
from numpy.typing import NDArray

from serve_app.audio.cancellation import BLOCK_S, CancellationGuard
from serve_app.window import SAMPLE_RATE, Samples

MAX_PLANES = 7
"""Maximum number of channels of a planar frame that PyAV reads. With more, it reads beyond FFmpeg's list of planes."""


class Resampler:
    """Resamples one stream with libswresample. The sample rate, sample format and layout may change in the middle of it."""

    def __init__(self) -> None:
        self._resampler: AudioResampler | None = None
        self._mixer: Graph | None = None
        self._guard: CancellationGuard | None = None
        self._fifo = AudioFifo()
        self._format: tuple[str, str, int] | None = None

    def __call__(self, frame: AudioFrame | None) -> Iterator[Samples]:
        """Yield the samples that `frame` completes, int16 [samples]; None flushes the resampler.

        Raises av.FFmpegError or ValueError if FFmpeg cannot convert the frame.
        """
        if frame is None:
            yield from self._flush()
            return
        frame_format = (frame.format.name, frame.layout.name, frame.sample_rate)
        if frame_format != self._format:
            yield from self._flush()
            weights = _mix_weights(frame.layout.name)
            self._resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            self._mixer = _even_mixer(frame) if weights is None else None
            self._guard = _new_guard(frame, weights)
            self._format = frame_format
        # decoding.py fills gaps. Without time stamps, the resampler neither drops nor inserts samples.
        frame.pts = None
        if self._guard is None:
            yield from self._converted(frame)
            return
        self._fifo.write(frame)
        for block in self._fifo.read_many(round(BLOCK_S * frame.sample_rate)):
            yield from self._converted(_guarded(block, self._guard))

    def _converted(self, frame: AudioFrame) -> Iterator[Samples]:
        assert self._resampler is not None
        if self._mixer is not None:
            self._mixer.push(frame)
            frame = cast(AudioFrame, self._mixer.pull())
        for out in self._resampler.resample(frame):
            yield out.to_ndarray()[0]

    def _flush(self) -> Iterator[Samples]:
        if self._guard is not None and (rest := self._fifo.read()) is not None:
            yield from self._converted(_guarded(rest, self._guard))
        if self._resampler is not None:
            for out in self._resampler.resample(None):
                yield out.to_ndarray()[0]
        self._resampler = self._mixer = self._guard = self._format = None
        self._fifo = AudioFifo()


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


def _new_guard(frame: AudioFrame, weights: NDArray[np.float32] | None) -> CancellationGuard | None:
    """The guard for frames of the format of `frame`; None for mono, and for what PyAV cannot convert to an array."""
    channels = frame.layout.nb_channels
    is_array = not frame.format.name.startswith("s64") and (frame.format.is_packed or channels <= MAX_PLANES)
    if channels == 1 or not is_array:
        return None
    return CancellationGuard(np.ones(channels, np.float32) if weights is None else weights, frame.sample_rate)


def _guarded(frame: AudioFrame, guard: CancellationGuard) -> AudioFrame:
    array, channels = frame.to_ndarray(), frame.layout.nb_channels
    block = array if frame.format.is_planar else array.reshape(-1, channels).T
    checked = guard(block)
    if checked is block:
        return frame
    array = checked if frame.format.is_planar else checked.T.reshape(1, -1)
    contiguous = cast(NDArray[np.float32], np.ascontiguousarray(array))
    changed = AudioFrame.from_ndarray(contiguous, format=frame.format.name, layout=frame.layout.name)
    changed.sample_rate = frame.sample_rate
    return changed


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
