"""Any audio or video file in, blocks of mono int16 at 16 kHz out, a bit at a time.

PyAV carries FFmpeg, so every container and codec that FFmpeg knows works without a system package. A damaged file gives what
decodes, with a warning; a file that gives nothing is an AudioError.
"""

import asyncio
import os
from collections.abc import AsyncGenerator, Generator, Iterator
from typing import BinaryIO, cast

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.resampler import AudioResampler
from numpy.typing import NDArray

from serve_app.errors import AudioError
from serve_app.transcript import SAMPLE_RATE, Samples

BLOCK_SAMPLES = 5 * SAMPLE_RATE
"""A block has at least this many samples, except the last."""

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 1_000, 768_000
"""Outside, a header is broken or made to fill the memory: at 1 Hz a few kilobytes would be hours."""

NO_OTHER_FILES = {"protocol_whitelist": "none"}
"""Playlists and session descriptions would have FFmpeg open files of this machine, or its network."""

MOST_DAMAGED_PACKETS = 1000
"""Decoding stops here: what follows would be noise, and a demuxer may report the same damage for ever."""


class AudioFile:
    """A file being decoded. `warnings` says, once the blocks are read, what was wrong with it."""

    def __init__(self, source: BinaryIO) -> None:
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
        decoding: asyncio.Future[Samples | None] | None = None
        try:
            while True:
                decoding = asyncio.ensure_future(asyncio.to_thread(next, blocks, None))
                block = await asyncio.shield(decoding)
                if block is None:
                    return
                yield block
        finally:
            # A thread cannot be stopped: who leaves in the middle of a block waits for its end, and the file stays open so long.
            if decoding is not None and not decoding.done():
                await asyncio.wait([decoding])
            blocks.close()

    def _pieces(self) -> Iterator[Samples]:
        try:
            container = av.open(self._source, mode="r", metadata_errors="ignore", options=NO_OTHER_FILES)
        except (av.FFmpegError, ValueError) as error:
            raise AudioError("The file is not an audio or video file, or it is damaged from the start.") from error
        with container:
            if not container.streams.audio:
                raise AudioError("The file has no audio: it holds no audio stream.")
            stream = container.streams.audio[0]
            if stream.codec_context is None:
                raise AudioError("The audio of the file is in a codec that cannot be decoded.")
            if not LOWEST_RATE_HZ <= stream.rate <= HIGHEST_RATE_HZ:
                raise AudioError(f"The sample rate of {stream.rate} Hz is out of the range of audio.")
            stream.codec_context.thread_type = "AUTO"
            has_float_samples = stream.codec_context.name.startswith(("pcm_f32", "pcm_f64"))
            resample = _Resampler()
            try:
                for frame in self._frames(container, stream):
                    yield from resample(_without_nan(frame) if has_float_samples else frame)
                yield from resample(None)
            except (av.FFmpegError, ValueError) as error:
                raise AudioError(f"The audio of the file cannot be converted: {error}") from error

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


def _is_empty(source: BinaryIO) -> bool:
    position = source.tell()
    size = source.seek(0, os.SEEK_END)
    source.seek(position)
    return size == 0
