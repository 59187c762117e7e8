"""Convert decoded frames of any sample rate and channel layout to mono int16 at 16 kHz."""

import functools
from collections.abc import Iterator
from fractions import Fraction
from typing import cast

import av
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from av.filter import Graph

from serve_app.window import SAMPLE_RATE, Samples


class Resampler:
    """Resamples one stream with libswresample. The sample rate, sample format and layout may change in the middle of it."""

    def __init__(self) -> None:
        self._resampler: AudioResampler | None = None
        self._mixer: Graph | None = None
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
            self._resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            self._mixer = None if _is_mixable(frame.layout.name) else _even_mixer(frame)
            self._format = frame_format
        # decoding.py fills gaps. Without time stamps, the resampler neither drops nor inserts samples.
        frame.pts = None
        if self._mixer is not None:
            self._mixer.push(frame)
            frame = cast(AudioFrame, self._mixer.pull())
        assert self._resampler is not None
        for out in self._resampler.resample(frame):
            yield out.to_ndarray()[0]

    def _flush(self) -> Iterator[Samples]:
        if self._resampler is not None:
            for out in self._resampler.resample(None):
                yield out.to_ndarray()[0]
        self._resampler = self._mixer = self._format = None


@functools.lru_cache(maxsize=256)
def _is_mixable(layout: str) -> bool:
    """Whether FFmpeg can mix a layout to mono. It has no rule for ambisonics, nor for most layouts above eight channels."""
    try:
        probe = AudioFrame("s16", layout, samples=16)
        probe.sample_rate = SAMPLE_RATE
        AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE).resample(probe)
    except (av.FFmpegError, ValueError):
        return False
    return True


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
