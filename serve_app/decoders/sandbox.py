"""Limits of a decoder process, set by itself before it sees a file: memory, processor time, and no new descriptors.

FFmpeg parses files that anybody may have forged. With these limits a fault in it ends at most this process.
"""

import contextlib
import os
import queue
import resource
import socket
import time

MAX_JOBS = 64
"""Number of files that a process decodes in time slices."""

FREE_MEMORY_BYTES = 512 << 20
"""Address space beyond that of the started process, bytes."""

MEMORY_PER_JOB_BYTES = 16 << 20
"""More for every file, besides four of its windows and its index, bytes."""

MAX_INDEX_BYTES = 256 << 20
"""Maximum memory for the index of an MP4 file, which is smaller than the file, bytes: that of ten hours of AAC takes 194 MB."""

START_CPU_S = 10.0
"""Processor time for a file, seconds. Real files need a thousandth of what they get in all."""

CPU_S_PER_MEGABYTE = 0.2
"""More for each megabyte up to which the file was read, seconds."""

CPU_S_PER_AUDIO_S = 0.1
"""More for each second of audio that was decoded, seconds. What the file announces does not count."""


class Descriptors:
    """Every descriptor that the process may have is open. A received one takes the place of a placeholder."""

    def __init__(self) -> None:
        self._placeholder = os.open(os.devnull, os.O_RDONLY)
        # Twice as many: jobs that were closed may still wait for their last time slice when others come.
        numbers = [os.dup(self._placeholder) for _ in range(2 * MAX_JOBS)]
        # Numbers are given from the lowest on: below the last one all are taken, and above it there are no more.
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(numbers) + 1, max(numbers) + 1))
        self._free: queue.SimpleQueue[int] = queue.SimpleQueue()
        for number in numbers:
            self._free.put(number)

    def receive(self, source: socket.socket) -> int:
        """The next descriptor from a socket. Raises EOFError if the sender is gone. While it runs, one number is free."""
        os.close(self._free.get_nowait())
        _, received, _, _ = socket.recv_fds(source, 1, 1)
        if not received:
            raise EOFError
        return received[0]

    def close(self, descriptor: int) -> None:
        """Close a received descriptor: a placeholder takes its number."""
        os.dup2(self._placeholder, descriptor)
        self._free.put(descriptor)

    def wait_for_room(self) -> None:
        """Wait until there is a placeholder."""
        self._free.put(self._free.get())


class Memory:
    """The limit of the process's address space, by the files that are open."""

    def __init__(self) -> None:
        self._bytes = _address_space_bytes() + FREE_MEMORY_BYTES
        self.add(0)

    def add(self, size_bytes: int) -> None:
        """Raise the limit, or lower it, by so many bytes."""
        self._bytes += size_bytes
        with contextlib.suppress(ValueError, OSError):
            # Some systems have no such limit.
            _limit(resource.RLIMIT_AS, self._bytes)


def _limit(what: int, value: int) -> None:
    """Set a limit that can be raised again, within the one that the process was started with."""
    _, hard = resource.getrlimit(what)
    resource.setrlimit(what, (value if hard == resource.RLIM_INFINITY else min(value, hard), hard))


def _address_space_bytes() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 30


class ProcessorTime:
    """The processor time of one file. The system ends the process when a file exceeds what it may use.

    `begin` and `end` enclose every time slice of the file, in the file's own thread.
    """

    def __init__(self) -> None:
        self._used_s = 0.0
        self._began_s = 0.0

    def begin(self, read_bytes: int, decoded_s: float) -> None:
        allowed_s = START_CPU_S + CPU_S_PER_MEGABYTE * read_bytes / 1e6 + CPU_S_PER_AUDIO_S * decoded_s
        self._began_s = time.thread_time()
        # The limit is in whole seconds, and counts all that the process has ever used.
        _limit(resource.RLIMIT_CPU, int(time.process_time() + allowed_s - self._used_s) + 1)

    def end(self) -> None:
        self._used_s += time.thread_time() - self._began_s


def forbid_core_dumps() -> None:
    """A crash must not write the content of a client's file to the disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
