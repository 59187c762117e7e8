"""The time slices of the files in a decoder process."""

import threading
from collections import deque

from serve_app.decoders.shared_memory import SharedMemory


class TimeSlices:
    """A lock that goes to the job that waits longest. The shared memory shows which one has it.

    A job gives it back after every block, so a short file never waits for the end of a long one.
    """

    def __init__(self, memory: SharedMemory) -> None:
        self._memory = memory
        self._mutex = threading.Lock()
        self._is_taken = False
        self._waiting: deque[threading.Lock] = deque()

    def begin(self, job: int) -> None:
        """Wait for a time slice. `job`: number of the job; 0: none, which does not wait behind jobs."""
        with self._mutex:
            waits = self._is_taken
            self._is_taken = True
            if waits:
                mine = threading.Lock()
                mine.acquire()
                if job:
                    self._waiting.append(mine)
                else:
                    self._waiting.appendleft(mine)
        if waits:
            mine.acquire()
        self._memory.job = job

    def end(self) -> None:
        """Give the time slice back."""
        self._memory.job = 0
        with self._mutex:
            if self._waiting:
                self._waiting.popleft().release()
            else:
                self._is_taken = False
