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
from serve_app.window import MAX_WINDOW_S, Window

log = logging.getLogger("ray.serve")

MAX_DEATHS = 2
"""Number of processes that may end while they decode a file; then the file is invalid."""


class DecoderPool:
    """Starts `processes` processes and keeps them. Its recordings may belong to any event loop.

    A recording goes to the process with the fewest, which decodes its recordings in turns. When a process ends, it is replaced,
    and its recordings continue in others with the first window that was not received. The one that was being decoded at that
    moment gets a process for itself; if that one ends too, the recording fails.
    """

    def __init__(self, processes: int) -> None:
        self._size = processes
        self._numbers = itertools.count(1)
        self._lock = threading.RLock()
        self._recordings: dict[int, Recording] = {}
        self._waiting: deque[Recording] = deque()
        self._shared: list[DecoderProcess] = []
        self._own: list[DecoderProcess] = []
        self._is_closed = False
        with self._lock:
            for _ in range(processes):
                self._start(self._shared)

    def open(self, file: BinaryIO | GrowingFile, *, track: int | None = None, formats: Collection[str] = ()) -> Recording:
        """A recording to decode.

        `track`: number of the audio stream, from 0; None: the default one. `formats`: allowed containers, by FFmpeg's names;
        empty: all.
        """
        return Recording(next(self._numbers), file, self._scheduled, track, formats)

    async def recognises(self, head: bytes) -> bool:
        """Whether FFmpeg recognises a media file in `head`, its first bytes, and decodes audio from it."""
        recording = self.open(io.BytesIO(head), formats=PROBED_FORMATS)
        async with aclosing(recording.windows(MAX_WINDOW_S, 0)) as windows:
            try:
                return await anext(windows, None) is not None
            except AudioError:
                return False

    def close(self) -> None:
        """End all processes."""
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
        with self._lock:
            self._recordings[recording.number] = recording
            self._waiting.append(recording)
            self._place_waiting()
        try:
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
        for recording in list(self._waiting):
            process = self._process_for(recording)
            if process is not None:
                self._waiting.remove(recording)
                recording.begin(process)

    def _process_for(self, recording: Recording) -> DecoderProcess | None:
        if recording.deaths:
            return self._start(self._own) if len(self._own) < self._size else None
        if not self._shared:
            self._start(self._shared)
        process = min(self._shared, key=self._recordings_of)
        return process if self._recordings_of(process) < MAX_JOBS else None

    def _recordings_of(self, process: DecoderProcess) -> int:
        return sum(recording.process is process for recording in self._recordings.values())

    def _start(self, group: list[DecoderProcess]) -> DecoderProcess:
        process = DecoderProcess(self._receive, self._ended)
        group.append(process)
        return process

    def _receive(self, process: DecoderProcess, number: int, message: Message, window: Window | None) -> None:
        with self._lock:
            recording = self._recordings.get(number)
            if recording is not None and recording.process is process:
                recording.receive(message, window)

    def _ended(self, process: DecoderProcess) -> None:
        """A process has ended, and all its messages were received."""
        with self._lock:
            group = self._own if process in self._own else self._shared
            group.remove(process)
            if self._is_closed:
                return
            left = [recording for recording in self._recordings.values() if recording.process is process]
            current = process.current_job
            if not process.is_ready:
                log.error("a decoder process could not be started")
            elif group is self._shared:
                log.warning("decoder process %d ended (%d)", process.pid, process.exit_code)
                self._start(self._shared)
            for recording in left:
                recording.process = None
                recording.deaths += recording.number == current
                if not process.is_ready:
                    recording.fail(EngineError(UNFORESEEN))
                elif recording.deaths >= MAX_DEATHS:
                    recording.fail(AudioError("The file cannot be decoded: it crashes the decoder, or exceeds its limits."))
                else:
                    self._waiting.append(recording)
            self._place_waiting()
