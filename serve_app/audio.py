"""Any audio or video file in, blocks of mono int16 at 16 kHz out, a bit at a time.

PyAV carries FFmpeg, so every container and codec that FFmpeg knows works without a system package. A damaged file gives what
decodes, with a warning; a file that gives nothing is an AudioError.
"""

import os
from collections.abc import AsyncGenerator, Generator, Iterator
from pathlib import Path
from typing import BinaryIO, cast

import av
import numpy as np
from anyio import to_thread
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from serve_app.errors import AudioError
from serve_app.transcript import SAMPLE_RATE, Samples

BLOCK_SAMPLES = 5 * SAMPLE_RATE
"""A block has at least this many samples, except the last."""

MOST_DAMAGED_PACKETS = 1000
"""Decoding stops here: what follows would be noise, and a demuxer may report the same damage for ever."""


class AudioFile:
    """A file being decoded. `warnings` says, once the blocks are read, what was wrong with it."""

    def __init__(self, source: Path | BinaryIO) -> None:
        self._source = source
        self._damaged_packets = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        return ("Parts of the file could not be decoded and were skipped.",) if self._damaged_packets else ()

    def blocks(self) -> Generator[Samples, None, None]:
        """Decode the first audio stream; each block is int16 [samples]. Raises AudioError when there is nothing to decode."""
        if _is_empty(self._source):
            raise AudioError("The file is empty.")
        held: list[Samples] = []
        held_samples = total_samples = 0
        for piece in self._pieces():
            held.append(piece)
            held_samples += len(piece)
            total_samples += len(piece)
            if held_samples >= BLOCK_SAMPLES:
                yield np.concatenate(held)
                held, held_samples = [], 0
        if total_samples == 0:
            raise AudioError("The file holds no audio samples.")
        if held:
            yield np.concatenate(held)

    async def stream(self) -> AsyncGenerator[Samples, None]:
        """The same blocks, decoded in a worker thread, each one only when it is asked for."""
        blocks = self.blocks()
        try:
            while (block := await to_thread.run_sync(next, blocks, None)) is not None:
                yield block
        finally:
            blocks.close()

    def _pieces(self) -> Iterator[Samples]:
        try:
            container = av.open(self._source, mode="r", metadata_errors="ignore")
        except (av.FFmpegError, ValueError) as error:
            raise AudioError("The file is not an audio or video file, or it is damaged from the start.") from error
        with container:
            if not container.streams.audio:
                raise AudioError("The file has no audio: it holds no audio stream.")
            stream = container.streams.audio[0]
            stream.codec_context.thread_type = "AUTO"
            has_float_samples = stream.codec_context.name.startswith(("pcm_f32", "pcm_f64"))
            resample = _Resampler()
            for frame in self._frames(container, stream):
                if has_float_samples:
                    frame = _without_nan(frame)
                yield from resample(frame)
            yield from resample(None)

    def _frames(self, container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[AudioFrame]:
        packets = container.demux(stream)
        while self._damaged_packets < MOST_DAMAGED_PACKETS:
            try:
                frames = next(packets).decode()
            except (StopIteration, av.EOFError):
                return
            except av.FFmpegError:
                self._damaged_packets += 1
            else:
                yield from frames


class _Resampler:
    """libswresample to mono int16 at 16 kHz; made anew when a stream changes its format on the way."""

    def __init__(self) -> None:
        self._resampler: AudioResampler | None = None
        self._format: tuple[str, str, int] | None = None

    def __call__(self, frame: AudioFrame | None) -> Iterator[Samples]:
        """Samples that are complete once `frame` is in; None flushes."""
        if frame is None:
            yield from self._flush()
            return
        frame_format = (frame.format.name, frame.layout.name, frame.sample_rate)
        if frame_format != self._format:
            yield from self._flush()
            self._resampler = AudioResampler(format="s16", layout="mono", rate=SAMPLE_RATE)
            self._format = frame_format
        # Broken timestamps must not make the filter drop or invent samples.
        frame.pts = None
        assert self._resampler is not None
        for out in self._resampler.resample(frame):
            yield out.to_ndarray()[0]

    def _flush(self) -> Iterator[Samples]:
        if self._resampler is not None:
            for out in self._resampler.resample(None):
                yield out.to_ndarray()[0]


def _without_nan(frame: AudioFrame) -> AudioFrame:
    """NaN and infinite samples as silence: a resampler would spread them, and integers have no place for them."""
    values = frame.to_ndarray()
    if np.isfinite(values).all():
        return frame
    finite = np.nan_to_num(cast("NDArray[np.float32]", values), nan=0.0, posinf=0.0, neginf=0.0)
    clean = AudioFrame.from_ndarray(finite, frame.format.name, frame.layout.name)
    clean.sample_rate = frame.sample_rate
    return clean


def _is_empty(source: Path | BinaryIO) -> bool:
    if isinstance(source, Path):
        return source.stat().st_size == 0
    position = source.tell()
    size = source.seek(0, os.SEEK_END)
    source.seek(position)
    return size == 0
