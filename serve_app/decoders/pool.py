"""The decoder processes of one ingress, and the distribution of files to them."""

import io
import itertools
import logging
import threading
from collections import deque
from collections.abc import Collection, Iterator
from contextlib import aclosing, contextmanager
from typing import BinaryIO

from serve_app.audio.growing_file import GrowingFile
from serve_app.audio.probing import PROBED_FORMATS
from serve_app.decoders.messages import Close, Message
from serve_app.decoders.process import DecoderProcess
from serve_app.decoders.recording import Recording
from serve_app.decoders.sandbox import MAX_JOBS
from serve_app.errors import UNFORESEEN, AudioError, EngineError
from serve_app.window import MAX_WINDOW_S, NewSamples, Window, new_samples

log = logging.getLogger("ray.serve")

MAX_DEATHS = 2
"""Number of processes that may end while they decode a file; then the file is invalid."""

MAX_FAILED_STARTS = 3
"""Number of processes in a row that may fail to start; then the waiting recordings fail, and the next one tries again."""

MAX_OWN_PROCESSES = 8
"""Number of processes beyond those that are kept, each for one recording during whose decoding another process ended."""


class DecoderPool:
    """Starts `processes` processes and keeps as many. Its recordings may belong to any event loop.

    A recording goes to the process with the fewest, which decodes its recordings in time slices. When a process ends, it is
    replaced, and its recordings continue in others with the first window that was not received. The one that was being decoded
    at that moment gets a process for itself; if that one ends too, the recording fails.
    """

    def __init__(self, processes: int, new_samples: NewSamples = new_samples) -> None:
        """`new_samples` makes the arrays of windows."""
        self._size = processes
        self._new_samples = new_samples
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        self._recordings: dict[int, Recording] = {}
        self._waiting: deque[Recording] = deque()
        self._shared: list[DecoderProcess] = []
        self._own: list[DecoderProcess] = []
        self._failed_starts = 0
        self._is_closed = False
        self.failures = 0
        """Processes that ended while they were needed, or could not be started, since the start."""
        with self._lock:
            self._start_missing()

    def open(
        self,
        file: BinaryIO | GrowingFile,
        *,
        track: int | None = None,
        formats: Collection[str] = (),
        multichannel: bool = False,
    ) -> Recording:
        """A recording to decode.

        `track`: number of the audio stream, from 0; None: the default one. `formats`: allowed containers, by FFmpeg's names;
        empty: all. `multichannel`: every channel has windows of its own; else they are mixed.
        """
        return Recording(next(self._numbers), file, self._scheduled, track, formats, multichannel=multichannel)

    async def recognises(self, head: bytes) -> bool:
        """Whether FFmpeg recognises a media file in `head`, its first bytes, and decodes audio from it."""
        recording = self.open(io.BytesIO(head), formats=PROBED_FORMATS)
        async with aclosing(recording.windows(MAX_WINDOW_S, 0)) as windows:
            try:
                return await anext(windows, None) is not None
            except AudioError:
                return False

    def close(self) -> None:
        """End all processes. Recordings that are being decoded get nothing more."""
        with self._lock:
            self._is_closed = True
            for process in self._shared + self._own:
                process.kill()

    @property
    def pids(self) -> list[int]:
        """Of all processes."""
        with self._lock:
            return [process.pid for process in self._shared + self._own]

    @contextmanager
    def _scheduled(self, recording: Recording) -> Iterator[None]:
        try:
            with self._lock:
                self._recordings[recording.number] = recording
                self._waiting.append(recording)
                self._place_waiting()
            yield
        finally:
            with self._lock:
                del self._recordings[recording.number]
                if recording in self._waiting:
                    self._waiting.remove(recording)
                elif (process := recording.process) is not None and process in self._own:
                    process.kill()
                elif process is not None:
                    process.send(Close(recording.number))
                self._place_waiting()

    def _place_waiting(self) -> None:
        if self._waiting and not self._shared:
            self._start_missing()
        for recording in list(self._waiting):
            if not self._shared:
                self._waiting.remove(recording)
                self._failed_starts = 0
                recording.fail(EngineError(UNFORESEEN))
            elif (process := self._process_for(recording)) is not None:
                self._waiting.remove(recording)
                recording.begin(process)

    def _process_for(self, recording: Recording) -> DecoderProcess | None:
        """None: it has to wait."""
        if recording.deaths:
            return self._start(self._own) if len(self._own) < MAX_OWN_PROCESSES else None
        process = min(self._shared, key=self._recordings_of)
        return process if self._recordings_of(process) < MAX_JOBS else None

    def _recordings_of(self, process: DecoderProcess) -> int:
        return sum(recording.process is process for recording in self._recordings.values())

    def _start_missing(self) -> None:
        while len(self._shared) < self._size and self._failed_starts < MAX_FAILED_STARTS:
            self._start(self._shared)

    def _start(self, group: list[DecoderProcess]) -> DecoderProcess | None:
        try:
            process = DecoderProcess(self._receive, self._ended, self._new_samples)
        except OSError:
            self._failed_starts += 1
            self.failures += 1
            log.exception("a decoder process could not be started")
            return None
        group.append(process)
        return process

    def _receive(self, process: DecoderProcess, number: int, message: Message, window: Window | None) -> None:
        with self._lock:
            self._failed_starts = 0
            recording = self._recordings.get(number)
            if recording is not None and recording.process is process:
                recording.receive(message, window)

    def _ended(self, process: DecoderProcess) -> None:
        """A process has ended, and all its messages were received."""
        with self._lock:
            is_wanted = process in self._shared or self._recordings_of(process) > 0
            (self._own if process in self._own else self._shared).remove(process)
            if self._is_closed:
                return
            if is_wanted:
                self.failures += 1
                log.warning("decoder process %d ended (%s)", process.pid, process.exit_code)
            self._failed_starts += not process.is_ready
            for recording in [recording for recording in self._recordings.values() if recording.process is process]:
                self._continue(recording, is_blamed=recording.number == process.current_job)
            self._start_missing()
            self._place_waiting()

    def _continue(self, recording: Recording, *, is_blamed: bool) -> None:
        """Have a recording decoded in another process than before."""
        recording.process = None
        recording.deaths += is_blamed
        if recording.deaths >= MAX_DEATHS:
            recording.fail(AudioError("The file cannot be decoded: it crashes the decoder, or exceeds its limits."))
        else:
            self._waiting.append(recording)
