"""Any audio or video file in, blocks of mono int16 at 16 kHz out, decoded incrementally.

PyAV includes FFmpeg, so every container and codec of FFmpeg works without a system package. Of a damaged file, all that decodes
is returned, with a warning; a file without any audio is an AudioError. A time in the blocks is the time that a player shows. So
where the file's time stamps leave a gap, there is silence: audio that starts after the video, packets that were lost, or never
sent in silence.
"""

import asyncio
import itertools
import os
from collections.abc import AsyncGenerator, Generator, Iterable, Iterator
from concurrent.futures import Executor
from typing import BinaryIO, cast

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.packet import Packet
from av.stream import Discard
from numpy.typing import NDArray

from serve_app.audio.resampling import Resampler
from serve_app.errors import AudioError
from serve_app.window import SAMPLE_RATE, Samples

BLOCK_SAMPLES = 5 * SAMPLE_RATE
"""Minimum length of a block, samples; the last one may be shorter."""

MIN_RATE_HZ = 1_000
"""A lower sample rate is a broken or a forged header: at 1 Hz a few kilobytes would be hours."""

MAX_RATE_HZ = 768_000
"""A higher sample rate is a broken header."""

MAX_FRAME_S = 100
"""A frame is decoded as a whole: real ones last seconds at most, forged ones hours."""

OPEN_OPTIONS = {"protocol_whitelist": "none", "max_pixels": "1"}
"""FFmpeg must not open other files or the network, as playlists and session descriptions ask it to. Nor must it decode a picture
to probe a video, for which a file of some kilobytes can demand hundreds of megabytes."""

AMR_FIRST_SILENT_TYPE = 8
"""Frame types from here on are silence (AMR discontinuous transmission). FFmpeg reports damage; skipped, they leave a gap."""

MIN_GAP_S = 0.1
"""A gap that is shorter, seconds, is not silence: codecs delay and containers round."""

MIN_JUMP_S = 0.01
"""Smallest jump from one frame to the next, seconds: many small ones add up to a gap, and a slow drift has none."""

MAX_GAP_S = 3600.0
"""A longer gap, seconds, is a clock that was set, or a broken time stamp."""

MAX_DAMAGED_IN_A_ROW = 1000
"""Decoding stops after this many errors in a row: a demuxer may report the same damage endlessly."""


class AudioFile:
    """A file being decoded, in `thread` or else in the event loop's executor. `warnings` is complete once all blocks are read."""

    def __init__(self, source: BinaryIO, thread: Executor | None = None) -> None:
        self._source = source
        self._thread = thread
        self.announced_s: float | None = None
        """Length according to the file, seconds; None before the first block, and where the file has none."""
        self._is_damaged = False
        self._damaged_in_a_row = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        return ("Parts of the file could not be decoded and were skipped.",) if self._is_damaged else ()

    def blocks(self) -> Generator[Samples, None, None]:
        """Decode the first audio stream; each block is int16 [samples]. Raises AudioError when there is no audio."""
        if self._source.seekable() and _is_empty(self._source):
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
        """The same blocks, decoded in a worker thread, each only when it is requested."""
        blocks, loop = self.blocks(), asyncio.get_running_loop()
        decoding: asyncio.Future[Samples | None] | None = None
        try:
            while True:
                decoding = loop.run_in_executor(self._thread, next, blocks, None)
                block = await asyncio.shield(decoding)
                if block is None:
                    return
                yield block
        finally:
            # A thread cannot be cancelled, so wait for the end of its block; the file must stay open until then.
            if decoding is not None and not decoding.done():
                await asyncio.wait([decoding])
            blocks.close()

    def _pieces(self) -> Iterator[Samples]:
        try:
            container = av.open(self._source, mode="r", metadata_errors="ignore", options=OPEN_OPTIONS)
        except (av.FFmpegError, ValueError) as error:
            raise AudioError("The file is not an audio or video file, or it is damaged from the start.") from error
        with container:
            stream = _audio_stream(container)
            self.announced_s = container.duration / av.time_base if container.duration else None
            start_s = None if container.start_time is None else container.start_time / av.time_base
            resample, is_first = Resampler(), True
            for silence_s, frame in _with_gaps(self._frames(container, stream), start_s):
                if silence_s > 0:
                    yield from resample(None)
                    yield from _silence(silence_s)
                try:
                    yield from resample(frame)
                except (av.FFmpegError, ValueError) as error:
                    if is_first:
                        raise AudioError(f"The audio of the file cannot be converted: {error}") from error
                    self._is_damaged = True
                is_first = False
            yield from resample(None)

    def _frames(self, container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[AudioFrame]:
        """Decoded frames, with the stream's time base."""
        decoder, is_first = stream.codec_context, True
        # Each thread would hold a frame, and a forged one can have hundreds of megabytes; one thread is fast enough.
        decoder.thread_count = 1
        has_float_samples = decoder.name.startswith(("pcm_f32", "pcm_f64"))
        for packet in itertools.chain(self._packets(container, stream), [None]):
            if decoder.name == "amrnb" and packet is not None and bytes(packet)[0] >> 3 & 15 >= AMR_FIRST_SILENT_TYPE:
                continue
            try:
                frames = decoder.decode(packet)
            except av.FFmpegError:
                self._note_damage()
                continue
            for frame in frames:
                self._damaged_in_a_row = 0
                has_sane_rate = MIN_RATE_HZ <= frame.sample_rate <= MAX_RATE_HZ
                if has_sane_rate and frame.samples <= MAX_FRAME_S * frame.sample_rate:
                    finite = _without_nan(frame) if has_float_samples else frame
                    finite.time_base = stream.time_base
                    yield finite
                elif is_first:
                    found = f"{frame.samples} samples in one piece at {frame.sample_rate} Hz"
                    raise AudioError(f"The file has {found}, which is out of the range of audio.")
                else:
                    self._note_damage()
                is_first = False

    def _packets(self, container: av.container.InputContainer, stream: av.AudioStream) -> "Iterator[Packet[av.AudioStream]]":
        packets = container.demux(stream)
        while self._damaged_in_a_row < MAX_DAMAGED_IN_A_ROW:
            try:
                packet = next(packets)
            except (StopIteration, IndexError):
                # PyAV raises IndexError at the end of a file in which streams appeared later.
                return
            except av.FFmpegError:
                self._note_damage()
                packets = container.demux(stream)
            else:
                # A decoder takes an empty packet for the end of the stream.
                if packet.size > 0:
                    yield packet

    def _note_damage(self) -> None:
        self._is_damaged = True
        self._damaged_in_a_row += 1


def _audio_stream(container: av.container.InputContainer) -> av.AudioStream:
    """The first audio stream that can be decoded; all others are discarded."""
    if not container.streams.audio:
        raise AudioError("The file has no audio: it holds no audio stream.")
    # Despite its type, codec_context is None where FFmpeg has no decoder.
    chosen = next((stream for stream in container.streams.audio if stream.codec_context is not None), None)
    if chosen is None:
        raise AudioError("The audio of the file is in a codec that cannot be decoded.")
    for stream in container.streams:
        if stream is not chosen:
            stream.discard = Discard.all
    return chosen


def _with_gaps(frames: Iterable[AudioFrame], start_s: float | None) -> Iterator[tuple[float, AudioFrame]]:
    """Each frame, with the silence before it in seconds according to its time stamp.

    Time stamps are often wrong. So one counts only where it jumps ahead of the previous frame and the next frame agrees with it.
    Time stamps that go back, drift, or jump by more than MAX_GAP_S are ignored.
    """
    due_s = previous_end_s = start_s
    for frame, following in itertools.pairwise(itertools.chain(frames, [None])):
        assert frame is not None
        length_s, silence_s = frame.samples / frame.sample_rate, 0.0
        if (at_s := frame.time) is not None:
            if due_s is None or previous_end_s is None:
                due_s = previous_end_s = at_s
            next_s = following.time if following is not None else None
            is_agreed = next_s is not None and abs(next_s - at_s - length_s) <= MIN_GAP_S / 4
            if is_agreed and at_s - due_s > MIN_GAP_S and at_s - previous_end_s > MIN_JUMP_S:
                silence_s = at_s - due_s if at_s - due_s <= MAX_GAP_S else 0.0
                due_s = at_s
            previous_end_s = at_s + length_s
        if due_s is not None:
            due_s += length_s
        yield silence_s, frame


def _silence(seconds: float) -> Iterator[Samples]:
    left_samples = round(seconds * SAMPLE_RATE)
    while left_samples > 0:
        yield np.zeros(min(left_samples, BLOCK_SAMPLES), np.int16)
        left_samples -= BLOCK_SAMPLES


def _without_nan(frame: AudioFrame) -> AudioFrame:
    """The frame with NaN and infinite samples as silence: a resampler would spread them."""
    values = frame.to_ndarray()
    if np.isfinite(values).all():
        return frame
    finite = np.nan_to_num(cast("NDArray[np.float32]", values), nan=0.0, posinf=0.0, neginf=0.0)
    clean = AudioFrame.from_ndarray(finite, frame.format.name, frame.layout.name)
    clean.sample_rate, clean.pts = frame.sample_rate, frame.pts
    return clean


def _is_empty(source: BinaryIO) -> bool:
    position = source.tell()
    size = source.seek(0, os.SEEK_END)
    source.seek(position)
    return size == 0
