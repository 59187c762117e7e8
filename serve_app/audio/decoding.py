"""Decode any audio or video file to blocks of int16 samples at 16 kHz, mono or channel by channel, incrementally.

PyAV includes FFmpeg, so every container and codec of FFmpeg works without a system package. The damaged parts of a file are
skipped, with a warning. A file without any audio raises AudioError.

Each sample has the time at which a player plays it. So where the time stamps of the file leave a gap, the blocks have silence.
Gaps occur where audio starts after the video, where packets were lost, and where the sender sent no packets during silence.
"""

import importlib
import itertools
import os
import pkgutil
from collections.abc import Collection, Generator, Iterable, Iterator
from typing import BinaryIO

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.packet import Packet

from serve_app.audio.duration import Duration
from serve_app.audio.resampling import Resampler
from serve_app.audio.tracks import select_track
from serve_app.errors import AudioError
from serve_app.window import SAMPLE_RATE, Samples

BLOCK_SAMPLES = 5 * SAMPLE_RATE
"""Minimum length of a block, samples; only the last block may be shorter."""

MIN_RATE_HZ = 1_000
"""Minimum sample rate, Hz. A lower one comes from a broken or forged header: at 1 Hz, a few kilobytes would last for hours."""

MAX_RATE_HZ = 768_000
"""Maximum sample rate, Hz. A higher one comes from a broken header."""

MAX_FRAME_S = 100
"""Maximum length of a frame, seconds. FFmpeg decodes a frame as a whole. Real frames last seconds at most, forged ones hours."""

OPEN_OPTIONS = {"protocol_whitelist": "none", "max_pixels": "1"}
"""Options of FFmpeg's demuxer.

`protocol_whitelist`: a playlist or session description must not make FFmpeg open other files or the network. `max_pixels`: FFmpeg
must not decode a picture to probe a video, because a file of a few kilobytes can require hundreds of megabytes for it.
"""

WAV_OPTIONS = {"max_size": "32768", "probesize": "32768"}
"""Options for WAV files: the size of a packet, which has 4 kB otherwise, and how much is read before the first one, bytes.

FFmpeg checks packet by packet whether PCM hides another codec, which takes longer than decoding a short file. This is enough for
ten frames of DTS, the codec that does occur.
"""

AMR_FIRST_SILENT_TYPES = {"amrnb": 8, "amrwb": 9}
"""Smallest frame type that means silence (discontinuous transmission), by the decoder's name.

FFmpeg reports such frames as damage. They are skipped, and the time stamps then show a gap.
"""

MIN_GAP_S = 0.1
"""Minimum length of a gap, seconds. Codec delays and rounded time stamps cause shorter ones, which are ignored."""

MIN_JUMP_S = 0.01
"""Minimum jump from the end of one frame to the time stamp of the next, seconds.

Many jumps add up to a gap. A clock that drifts slowly makes no jumps, so its drift is ignored.
"""

MAX_GAP_S = 3600.0
"""Maximum length of a gap, seconds. A longer one comes from a clock that was changed or a broken time stamp, and is ignored."""

MAX_DEMUXER_ERRORS_IN_A_ROW = 1000
"""Number of errors between two packets after which a file ends, because a demuxer may report the same damage endlessly."""

MAX_CHANNELS = 8
"""Maximum number of channels that are decoded one by one."""

SPARE_BYTES = 32 << 20
"""A process that cannot allocate this is out of memory, bytes."""


class AudioFile:
    """A media file to decode. `warnings` is complete once all blocks are read. The source must stay open until then."""

    def __init__(
        self, source: BinaryIO, *, track: int | None = None, formats: Collection[str] = (), multichannel: bool = False
    ) -> None:
        """`track`: number of the audio stream, from 0; None: the default one. `formats`: allowed containers; empty: all.
        `multichannel`: channels are not mixed.
        """
        self._is_multichannel = multichannel
        self.channels: int | None = None
        """Number of channels of the blocks; None before the first one, and where they are mixed."""
        self._source = source
        self._track = track
        self._options = OPEN_OPTIONS | ({"format_whitelist": ",".join(formats)} if formats else {})
        self._duration: Duration | None = None
        self._size_bytes: int | None = None
        self._resample, self._has_resampled = Resampler(), False
        self._read_bytes = self._decoded_samples = self._held_samples = 0
        self._is_damaged = self._is_short = False

    @property
    def warnings(self) -> tuple[str, ...]:
        damaged = "Parts of the file could not be decoded and were skipped."
        short = "The file ends before the duration that it states."
        return (damaged,) * self._is_damaged + (short,) * self._is_short

    @property
    def announced_s(self) -> float | None:
        """Duration of the audio, seconds: as the file states it, else estimated from the part that is decoded.

        None before the first block, and if the file states none while it is still being sent.
        """
        stated_s = self._duration.announced_s if self._duration is not None else None
        if stated_s is not None or not (self._size_bytes and self._read_bytes and self._decoded_samples):
            return stated_s
        return self._decoded_samples / SAMPLE_RATE * self._size_bytes / self._read_bytes

    def blocks(self) -> Generator[Samples, None, None]:
        """Decode the audio stream `track`. Each block is int16 [samples], with `multichannel` [channels, samples].

        Raises AudioError if there is none, or it has more than MAX_CHANNELS of them.

        Raises MemoryError if the process has no memory left.
        """
        if self._source.seekable():
            self._size_bytes = _size_bytes(self._source)
            if self._size_bytes == 0:
                raise AudioError("The file is empty.")
            if _is_wav(self._source):
                self._options |= WAV_OPTIONS
        held: list[Samples] = []
        for piece in self._pieces():
            held.append(piece)
            self._held_samples += piece.shape[-1]
            self._decoded_samples += piece.shape[-1]
            if self._held_samples >= BLOCK_SAMPLES:
                yield np.concatenate(held, axis=-1)
                held, self._held_samples = [], 0
        if self._decoded_samples == 0:
            raise AudioError("The file holds no audio samples.")
        self._is_short = self._duration is not None and self._duration.is_short(self._decoded_samples / SAMPLE_RATE)
        if held:
            yield np.concatenate(held, axis=-1)

    def _pieces(self) -> Iterator[Samples]:
        try:
            container = av.open(self._source, mode="r", metadata_errors="ignore", options=self._options)
        except (av.FFmpegError, ValueError) as error:
            _check_memory(error)
            raise AudioError("The file is not an audio or video file, or it is damaged from the start.") from error
        with container:
            stream = select_track(container, self._track)
            self._duration = Duration(container, stream)
            start_s = None if container.start_time is None else container.start_time / av.time_base
            for silence_s, frame in _with_gaps(self._frames(container, stream), start_s):
                if self._is_multichannel and self.channels is None:
                    self.channels = _checked(frame.layout.nb_channels)
                    self._resample = Resampler(self.channels)
                if silence_s > 0:
                    yield from self._resampled(None)
                    yield from _silence(silence_s, self.channels)
                yield from self._resampled(frame)
            yield from self._resampled(None)

    def _resampled(self, frame: AudioFrame | None) -> Iterator[Samples]:
        """What the resampler makes of `frame`, and of the frames that it has gathered for this block."""
        try:
            for samples in self._resample(frame, BLOCK_SAMPLES - self._held_samples):
                self._has_resampled = True
                yield samples
        except (av.FFmpegError, ValueError) as error:
            _check_memory(error)
            if not self._has_resampled:
                raise AudioError(f"The audio of the file cannot be converted: {error}") from error
            self._is_damaged = True

    def _frames(self, container: av.container.InputContainer, stream: av.AudioStream) -> Iterator[AudioFrame]:
        """Decoded frames, with the time base of the stream."""
        decoder, is_first = stream.codec_context, True
        # Each thread would hold a frame, and a forged frame can have hundreds of megabytes. One thread is fast enough.
        decoder.thread_count = 1
        first_silent_type = AMR_FIRST_SILENT_TYPES.get(decoder.name)
        for packet in itertools.chain(self._packets(container, stream), [None]):
            if packet is not None and first_silent_type is not None and bytes(packet)[0] >> 3 & 15 >= first_silent_type:
                continue
            try:
                frames = decoder.decode(packet)
            except av.FFmpegError as error:
                _check_memory(error)
                self._is_damaged = True
                continue
            for frame in frames:
                has_sane_rate = MIN_RATE_HZ <= frame.sample_rate <= MAX_RATE_HZ
                if has_sane_rate and frame.samples <= MAX_FRAME_S * frame.sample_rate:
                    if packet is None:
                        frame.time_base = stream.time_base
                    yield frame
                elif is_first:
                    found = f"a frame of {frame.samples} samples at {frame.sample_rate} Hz"
                    raise AudioError(f"The file is not valid audio: it has {found}.")
                else:
                    self._is_damaged = True
                is_first = False

    def _packets(self, container: av.container.InputContainer, stream: av.AudioStream) -> "Iterator[Packet[av.AudioStream]]":
        packets, errors_in_a_row = container.demux(stream), 0
        while errors_in_a_row < MAX_DEMUXER_ERRORS_IN_A_ROW:
            try:
                packet = next(packets)
            except (StopIteration, IndexError):
                # PyAV raises IndexError at the end of a file in which a stream appeared after the header.
                return
            except av.FFmpegError as error:
                _check_memory(error)
                self._is_damaged = True
                packets, errors_in_a_row = container.demux(stream), errors_in_a_row + 1
            else:
                errors_in_a_row = 0
                size_bytes = packet.size
                self._read_bytes = max(self._read_bytes, (packet.pos or 0) + size_bytes)
                # An empty packet would end the stream for the decoder.
                if size_bytes > 0:
                    yield packet


def preload() -> None:
    """Import all of PyAV: some of its modules it would import with the first stream of their kind only."""
    for module in pkgutil.walk_packages(av.__path__, "av."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


def _with_gaps(frames: Iterable[AudioFrame], start_s: float | None) -> Iterator[tuple[float, AudioFrame]]:
    """Each frame with the length of the gap in front of it, seconds. `start_s` is the start time of the file, seconds.

    Time stamps are often wrong. So a time stamp counts only if it is later than the end of the previous frame, and the time stamp
    of the next frame agrees with it. Time stamps that go back, drift, or jump by more than MAX_GAP_S are ignored.
    """
    due_s = previous_end_s = start_s
    for frame, following in itertools.pairwise(itertools.chain(frames, [None])):
        assert frame is not None
        length_s, silence_s = frame.samples / frame.sample_rate, 0.0
        if (at_s := frame.time) is not None:
            if due_s is None or previous_end_s is None:
                due_s = previous_end_s = at_s
            if at_s - due_s > MIN_GAP_S and at_s - previous_end_s > MIN_JUMP_S:
                next_s = following.time if following is not None else None
                if next_s is not None and abs(next_s - at_s - length_s) <= MIN_GAP_S / 4:
                    silence_s = at_s - due_s if at_s - due_s <= MAX_GAP_S else 0.0
                    due_s = at_s
            previous_end_s = at_s + length_s
        if due_s is not None:
            due_s += length_s
        yield silence_s, frame


def _silence(seconds: float, channels: int | None) -> Iterator[Samples]:
    left_samples = round(seconds * SAMPLE_RATE)
    while left_samples > 0:
        count = min(left_samples, BLOCK_SAMPLES)
        yield np.zeros(count if channels is None else (channels, count), np.int16)
        left_samples -= BLOCK_SAMPLES


def _checked(channels: int) -> int:
    if channels > MAX_CHANNELS:
        raise AudioError(f"The audio has {channels} channels; at most {MAX_CHANNELS} can be told apart.", param="multichannel")
    return channels


def _check_memory(error: Exception) -> None:
    """Raises MemoryError if the process has no memory left. Usually FFmpeg's error means that a forged file asks for too much."""
    if isinstance(error, MemoryError):
        np.empty(SPARE_BYTES, np.uint8)


def _is_wav(source: BinaryIO) -> bool:
    position = source.tell()
    head = source.read(12)
    source.seek(position)
    return head[:4] in (b"RIFF", b"RF64") and head[8:12] == b"WAVE"


def _size_bytes(source: BinaryIO) -> int:
    position = source.tell()
    size_bytes = source.seek(0, os.SEEK_END)
    source.seek(position)
    return size_bytes
