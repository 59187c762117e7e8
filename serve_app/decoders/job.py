"""One file in a decoder process, in a thread of its own."""

import contextlib
import errno
import itertools
import os
import queue
import threading
import traceback
from collections.abc import Callable, Iterator
from typing import BinaryIO, cast

from serve_app.audio.copies import Copies
from serve_app.audio.decoding import AudioFile
from serve_app.audio.dither import without_zeros
from serve_app.chunking import channel_windows, windows
from serve_app.decoders.messages import Close, Ended, Failed, Grown, Message, Open, Request, Starved, WindowDone
from serve_app.decoders.sandbox import ProcessorTime
from serve_app.decoders.shared_memory import SharedMemory
from serve_app.decoders.time_slices import TimeSlices
from serve_app.errors import AudioError
from serve_app.merging.gaps import frame_levels
from serve_app.window import SAMPLE_RATE, Samples, Window


class _Closed(Exception):
    """Nobody waits for the file any more."""


class SizedSource:
    """Reads a file whose size is known. Its position is its own: the descriptor shares one with the ingress.

    While the file is still being sent, every `seek` and `read` has the result that it would have with the complete file: `read`
    waits for its bytes, outside of the job's time slice.
    """

    def __init__(self, descriptor: int, size_bytes: int, arrived_bytes: int, wait_beyond: Callable[[int], int]) -> None:
        """`wait_beyond`: see GrowingSource."""
        self._descriptor = descriptor
        self._size_bytes = size_bytes
        self._arrived_bytes = arrived_bytes
        self._wait_beyond = wait_beyond
        self._position = 0
        self.read_bytes = 0
        """How far it was read, bytes."""

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """The new position. Damaged files have FFmpeg seek where nothing is; then FFmpeg's own error, which is negative."""
        position = offset + {os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}.get(whence, 0)
        if position < 0:
            return -errno.EINVAL
        self._position = position
        return position

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; an empty result is the end."""
        end = min(self._position + size, self._size_bytes)
        if self._position < end and self._arrived_bytes < end:
            self._arrived_bytes = self._wait_beyond(end - 1)
        data = os.pread(self._descriptor, size, self._position)
        self._position += len(data)
        self.read_bytes = max(self.read_bytes, self._position)
        return data


class GrowingSource:
    """Reads a file that is still being sent, of unknown size. It is not seekable, and `read` waits for bytes outside of the job's
    time slice."""

    def __init__(self, descriptor: int, wait_beyond: Callable[[int], int]) -> None:
        """`wait_beyond` returns the size of the file, bytes, once it exceeds this position or is final."""
        self._descriptor = descriptor
        self._wait_beyond = wait_beyond
        self._size_bytes = 0
        self.read_bytes = 0
        """How far it was read, bytes."""

    def seekable(self) -> bool:
        return False

    def read(self, size: int) -> bytes:
        """The next bytes, at most `size`; an empty result is the end."""
        if self.read_bytes == self._size_bytes:
            self._size_bytes = self._wait_beyond(self.read_bytes)
        data = os.pread(self._descriptor, min(size, self._size_bytes - self.read_bytes), self.read_bytes)
        self.read_bytes += len(data)
        return data


class Job:
    """Decodes the file in its time slices, and sends a window whenever one is requested and a slot is free.

    `run` belongs to the job's thread, `tell` to that of the messages.
    """

    def __init__(
        self,
        opening: Open,
        descriptor: int,
        memory: SharedMemory,
        time_slices: TimeSlices,
        free_slots: "queue.SimpleQueue[int]",
        send: Callable[[Message], None],
    ) -> None:
        self._opening = opening
        self._memory = memory
        self._time_slices = time_slices
        self._free_slots = free_slots
        self._send = send
        self._time = ProcessorTime()
        self._decoded_s = 0.0
        self._requests = threading.Semaphore(0)
        self._grown = threading.Condition()
        self._sent_bytes, self._is_sent, self._is_closed = 0, False, False
        size_bytes = opening.size_bytes
        self._source: SizedSource | GrowingSource = (
            GrowingSource(descriptor, self._wait_beyond)
            if size_bytes is None
            else SizedSource(descriptor, size_bytes, size_bytes if opening.is_complete else 0, self._wait_beyond)
        )
        self._audio = AudioFile(
            cast(BinaryIO, self._source), track=opening.track, formats=opening.formats, multichannel=opening.multichannel
        )
        self._copies = Copies()

    def tell(self, message: Request | Grown | Close) -> None:
        """Take a message of the ingress."""
        match message:
            case Request():
                self._requests.release()
            case Grown(_, size_bytes, is_complete):
                with self._grown:
                    self._sent_bytes, self._is_sent = size_bytes, is_complete
                    self._grown.notify()
            case Close():
                self._is_closed = True
                self._requests.release()
                with self._grown:
                    self._grown.notify()

    def run(self, on_end: Callable[[], None]) -> None:
        """Decode the file. `on_end` is called in its last time slice."""
        number, opening = self._opening.job, self._opening
        outcome: Message | None = None
        self._begin_slice()
        try:
            for window in itertools.islice(self._windows(), opening.first_window, None):
                self._hand_over(without_zeros(window))
            outcome = Ended(number, self._audio.announced_s, list(self._audio.warnings), self._copies.channels)
        except _Closed:
            pass
        except AudioError as error:
            outcome = Failed(number, error.message, error.param, is_expected=True)
        except MemoryError:
            # Whether this file or another one in the process needs too much is not known: this one is tried again alone.
            os._exit(1)
        except Exception as error:
            traceback.print_exc()
            outcome = Failed(number, repr(error), None, is_expected=False)
        # FFmpeg's objects, which may have threads, must not wait for the garbage collector: the source refers to this job.
        del self._audio
        on_end()
        self._end_slice()
        if outcome is not None and not self._is_closed:
            self._send(outcome)

    def _windows(self) -> Iterator[Window]:
        window_s, overlap_s = self._opening.window_s, self._opening.overlap_s
        if not self._opening.multichannel:
            return windows(self._blocks(), window_s, overlap_s)
        return channel_windows(map(self._copies.silenced, self._blocks()), window_s, overlap_s)

    def _blocks(self) -> Iterator[Samples]:
        for block in self._audio.blocks():
            self._decoded_s += block.shape[-1] / SAMPLE_RATE
            yield block
            self._end_slice()
            self._begin_slice()
            self._check_open()
        self._check_open()

    def _hand_over(self, window: Window) -> None:
        levels = frame_levels(window.samples)
        with self._outside_of_slice():
            self._requests.acquire()
            self._check_open()
            slot = self._free_slots.get()
            self._memory.write(slot, window.samples, levels)
            number, audio = self._opening.job, self._audio
            place = window.index, window.start_sample, len(window.samples)
            self._send(WindowDone(number, slot, *place, audio.announced_s, window.channel, audio.channels))

    def _wait_beyond(self, position: int) -> int:
        with self._outside_of_slice(), self._grown:
            if self._sent_bytes <= position and not self._is_sent:
                self._send(Starved(self._opening.job, position))
            while self._sent_bytes <= position and not self._is_sent and not self._is_closed:
                self._grown.wait()
            return position if self._is_closed else self._sent_bytes

    def _check_open(self) -> None:
        if self._is_closed:
            raise _Closed

    def _begin_slice(self) -> None:
        self._time_slices.begin(self._opening.job)
        self._time.begin(self._source.read_bytes, self._decoded_s)

    def _end_slice(self) -> None:
        self._time.end()
        self._time_slices.end()

    @contextlib.contextmanager
    def _outside_of_slice(self) -> Iterator[None]:
        self._end_slice()
        try:
            yield
        finally:
            self._begin_slice()
