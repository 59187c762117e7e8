"""A file that is decoded, as a request sees it."""

import asyncio
import contextlib
import io
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import AsyncGenerator, Callable, Collection, Iterator
from typing import Any, BinaryIO, cast

from serve_app.audio.growing_file import GrowingFile
from serve_app.decoders.messages import Ended, Failed, Grown, Message, Open, Request, Starved, WindowDone
from serve_app.decoders.process import DecoderProcess
from serve_app.errors import UNFORESEEN, AudioError, EngineError, SpeechError, StorageFull
from serve_app.window import Window

MIN_BIT_RATE = 4_000
"""Speech codecs hardly use less, bits per second."""

Schedule = Callable[["Recording"], contextlib.AbstractContextManager[None]]
"""While the block runs, the recording has a process, or waits for one."""


class Recording:
    """One file. `windows` can be called once; `warnings` is complete once all windows are read.

    `begin`, `receive` and `fail` belong to the pool, which calls them from any thread, one at a time.
    """

    def __init__(
        self,
        number: int,
        file: BinaryIO | GrowingFile,
        schedule: Schedule,
        track: int | None,
        formats: Collection[str],
        *,
        multichannel: bool = False,
    ) -> None:
        self.number = number
        self.warnings: tuple[str, ...] = ()
        self.is_multichannel = multichannel
        """Every channel has windows of its own; else they are mixed."""
        self.channels: tuple[int, ...] = ()
        """The channels, from 0, once there is a window. Those that only repeat the first one are left out once all windows are
        read: they are digital silence. Empty if the channels are mixed."""
        self.announced_s: float | None = None
        """Duration of the audio, seconds: as the file states it, else estimated. None before the first window, or if unknown."""
        self.process: DecoderProcess | None = None
        """The process that decodes it."""
        self.deaths = 0
        """Number of processes that ended while they decoded it."""
        self._file = file
        self._schedule = schedule
        self._track = track
        self._formats = list(formats)
        self._cut = (0.0, 0.0)
        self._size_bytes = 0
        self._copies: list[int] = []
        self._received: Counter[int] = Counter()
        """Windows by channel."""
        self._starved_at: int | None = None
        self._descriptor = -1
        self._loop: asyncio.AbstractEventLoop | None = None
        self._arrived: asyncio.Queue[Window | SpeechError | None] = asyncio.Queue()

    async def windows(self, window_s: float, overlap_s: float) -> AsyncGenerator[Window, None]:
        """Windows of at most `window_s` that overlap by `overlap_s`, seconds, without digital silence and with levels.

        Those of several channels come in the order in which they end.
        The next window is decoded while one is used. Raises AudioError, StorageFull, or EngineError if the server is at
        fault.
        """
        self._loop, self._cut = asyncio.get_running_loop(), (window_s, overlap_s)
        if isinstance(self._file, GrowingFile):
            self._file.on_growth = self._feed
        with _descriptor(self._file) as self._descriptor, self._schedule(self):
            while (item := await self._arrived.get()) is not None:
                if isinstance(item, SpeechError):
                    raise item
                self._send(Request(self.number))
                yield item
            self.channels = tuple(channel for channel in self.channels if channel not in self._copies)

    @property
    def expected_s(self) -> float | None:
        """`announced_s`, as far as the file can hold it: a few forged bytes may announce a day. None while it is being sent and
        its size is unknown."""
        file, size_bytes = self._file, self._size_bytes
        if isinstance(file, GrowingFile):
            size_bytes = file.size_bytes if file.completed.is_set() else file.final_bytes or 0
        return min(self.announced_s, 8 * size_bytes / MIN_BIT_RATE) if self.announced_s and size_bytes else None

    def begin(self, process: DecoderProcess) -> None:
        """Decode the windows that are missing in this process."""
        self.process, self._starved_at = process, None
        file, is_complete = self._file, not isinstance(self._file, GrowingFile)
        self._size_bytes = os.fstat(self._descriptor).st_size
        size_bytes = file.final_bytes if isinstance(file, GrowingFile) else self._size_bytes
        received, number = self._received.total(), self.number
        opening = Open(number, *self._cut, self._track, self._formats, size_bytes, is_complete, received, self.is_multichannel)
        process.send(opening, self._descriptor)
        process.send(Request(self.number))

    def receive(self, message: Message, window: Window | None) -> None:
        """Take a message of the process. Raises ValueError if it is none that can follow."""
        match message:
            case WindowDone(_, _, index, _, _, announced_s, channel, channels) if (
                window is not None and index == self._received[channel]
            ):
                self._received[channel] += 1
                self.announced_s = announced_s
                self.channels = tuple(range(channels or 0))
                self._call(self._arrived.put_nowait, window)
            case Starved(_, position):
                self._call(self._starve, position)
            case Ended(_, announced_s, warnings, copies):
                self.announced_s, self.warnings = announced_s, tuple(warnings)
                self._copies = copies
                self._call(self._arrived.put_nowait, None)
            case Failed(_, text, param, is_expected):
                self.fail(AudioError(text, param=param) if is_expected else EngineError(UNFORESEEN))
            case _:
                raise ValueError("unexpected message")

    def fail(self, error: SpeechError) -> None:
        """End with an error."""
        self._call(self._arrived.put_nowait, error)

    def _starve(self, position: int) -> None:
        self._starved_at = position
        self._feed()

    def _feed(self) -> None:
        """Tell a process that waits for more of a growing file what there is."""
        file = self._file
        assert isinstance(file, GrowingFile)
        if self._starved_at is not None and (file.size_bytes > self._starved_at or file.completed.is_set()):
            self._starved_at = None
            self._send(Grown(self.number, file.size_bytes, file.completed.is_set()))

    def _send(self, message: Message) -> None:
        process = self.process
        if process is not None:
            process.send(message)

    def _call(self, function: Callable[..., None], argument: Any) -> None:
        assert self._loop is not None
        with contextlib.suppress(RuntimeError):  # The loop is closed.
            self._loop.call_soon_threadsafe(function, argument)


@contextlib.contextmanager
def _descriptor(file: BinaryIO | GrowingFile) -> Iterator[int]:
    """A descriptor of the file, which stays open when the file is closed. A file that is in memory is copied."""
    try:
        if not isinstance(file, GrowingFile):
            file.flush()
        descriptor = os.dup(file.fileno())
    except io.UnsupportedOperation:
        with tempfile.TemporaryFile() as copy:
            shutil.copyfileobj(cast(BinaryIO, file), copy)
            copy.flush()
            descriptor = os.dup(copy.fileno())
    except OSError as error:
        # A small upload is written to the disk only now.
        raise StorageFull from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)
