"""Limits of a decoder process, set by itself before it sees a file: memory, processor time, and no new descriptors.

FFmpeg parses files that anybody may have forged. With these limits a fault in it ends at most this process.
"""

import contextlib
import os
import resource
import socket
import time

MAX_JOBS = 64
"""Number of files that a process decodes in turns."""

FREE_MEMORY_BYTES = 512 << 20
"""Address space beyond that of the started process, bytes."""

MEMORY_PER_JOB_BYTES = 16 << 20
"""More for every file, besides four of its windows, bytes."""

START_CPU_S = 10.0
"""Processor time for a file, seconds. Real files need a thousandth of what they get in all."""

CPU_S_PER_MEGABYTE = 0.2
"""More for each megabyte of the file that was read, seconds."""

CPU_S_PER_AUDIO_S = 0.1
"""More for each second of audio that was decoded, seconds. What the file announces does not count."""


class Descriptors:
    """Every descriptor that the process may have is open. A received one takes the place of a placeholder."""

    def __init__(self) -> None:
        self._placeholder = os.open(os.devnull, os.O_RDONLY)
        self._free = {os.dup(self._placeholder) for _ in range(MAX_JOBS)}
        # Numbers are given from the lowest on: below the last one all are taken, and above it there are no more.
        limit = max(self._free) + 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, limit))

    def receive(self, source: socket.socket) -> int:
        """The next descriptor from a socket. Raises EOFError if the sender is gone."""
        number = self._free.pop()
        os.close(number)
        _, received, _, _ = socket.recv_fds(source, 1, 1)
        if not received:
            raise EOFError
        return received[0]

    def close(self, descriptor: int) -> None:
        """Close a received descriptor: a placeholder takes its number."""
        os.dup2(self._placeholder, descriptor)
        self._free.add(descriptor)


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
            resource.setrlimit(resource.RLIMIT_AS, (self._bytes, resource.RLIM_INFINITY))


def _address_space_bytes() -> int:
    try:
        with open("/proc/self/statm") as file:
            return int(file.read().split()[0]) * resource.getpagesize()
    except OSError:
        return 1 << 30


class ProcessorTime:
    """The processor time of one file. The system ends the process when a file exceeds what it may use.

    `begin` and `end` enclose every turn of the file, in the file's own thread.
    """

    def __init__(self) -> None:
        self._used_s = 0.0
        self._began_s = 0.0

    def begin(self, read_bytes: int, decoded_s: float) -> None:
        allowed_s = START_CPU_S + CPU_S_PER_MEGABYTE * read_bytes / 1e6 + CPU_S_PER_AUDIO_S * decoded_s
        self._began_s = time.thread_time()
        # The limit is in whole seconds, and counts all that the process has ever used.
        limit_s = int(time.process_time() + allowed_s - self._used_s) + 1
        resource.setrlimit(resource.RLIMIT_CPU, (limit_s, resource.RLIM_INFINITY))

    def end(self) -> None:
        self._used_s += time.thread_time() - self._began_s


def forbid_core_dumps() -> None:
    """A crash must not write the content of a client's file to the disk."""
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
