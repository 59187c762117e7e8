"""Audio that an ingress shares with the replicas on its node, so that a call need not carry it.

An ingress keeps windows in memory that other processes of its user can open (a memfd). A call of a replica on the same node has
the place of the audio, and the replica copies it from there. What goes through gRPC is copied several times, each time into new
memory, which the system has to clear. To other nodes, and where there is no memfd, the audio itself is sent.
"""

import mmap
import os
import sys
import weakref
from collections import deque
from contextlib import suppress
from typing import NamedTuple

import numpy as np

from serve_app.errors import AudioUnreachable
from serve_app.window import MAX_WINDOW_S, SAMPLE_RATE, NewSamples, Samples, new_samples

SLOTS = 1024
"""Maximum number of windows in the memory of a process. Those beyond it are outside of it."""

SLOT_BYTES = -(-round(2 * MAX_WINDOW_S * SAMPLE_RATE) // mmap.PAGESIZE) * mmap.PAGESIZE
"""A slot has room for the longest window. Only what is written takes memory."""

MAX_KEPT_SLOTS = 32
"""How many slots keep their memory when they are free: what is in use again costs no new pages, which the system would clear."""

MAX_KEPT_BYTES = 2 << 20
"""A slot that held more, 65 s, keeps nothing, bytes."""


class Place(NamedTuple):
    """Where audio is: in the descriptor of a process on this node."""

    path: str
    file: tuple[int, int]
    """Device and inode: the ids of processes and the numbers of descriptors are used again."""
    offset_bytes: int
    length: int
    """Samples."""

    def read(self, new_samples: NewSamples) -> Samples:
        """A copy of the audio, int16 [samples], in an array that `new_samples` makes. Raises AudioUnreachable."""
        samples = new_samples(self.length)
        try:
            # In another PID namespace, the path may be anything, such as a pipe that would block.
            descriptor = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
            try:
                status = os.fstat(descriptor)
                if (status.st_dev, status.st_ino) != self.file:
                    raise OSError("another file")
                if os.preadv(descriptor, [samples.data], self.offset_bytes) != samples.nbytes:
                    raise OSError("too short")
            finally:
                os.close(descriptor)
        except OSError as error:
            raise AudioUnreachable(f"The audio of a call could not be read: {error}.") from error
        return samples


class SharedAudio:
    """The memory of a process, in slots. A slot is free again when its array, and all that are parts of it, are gone."""

    def __init__(self) -> None:
        self._map: mmap.mmap | None = None
        # An array may end in any thread, in the midst of anything, so that there must be no lock: a deque's methods are atomic.
        self._warm: deque[int] = deque()
        """Free slots that keep their memory."""
        self._cold: deque[int] = deque()
        """The other free slots."""
        if sys.platform == "linux" and hasattr(os, "memfd_create"):
            # Where the system allows no memfd of this size, there is no slot.
            with suppress(OSError):
                self._create()

    def _create(self) -> None:
        descriptor = os.memfd_create("audio", os.MFD_CLOEXEC)
        try:
            os.truncate(descriptor, SLOTS * SLOT_BYTES)
            self._map = mmap.mmap(descriptor, SLOTS * SLOT_BYTES)
        except OSError:
            os.close(descriptor)
            raise
        weakref.finalize(self, os.close, descriptor)
        self._address = np.frombuffer(self._map, np.uint8, 1).ctypes.data
        status = os.fstat(descriptor)
        self._path, self._file = f"/proc/{os.getpid()}/fd/{descriptor}", (status.st_dev, status.st_ino)
        self._cold.extend(range(SLOTS))

    def new_samples(self, length: int) -> Samples:
        """An array for `length` samples, int16, in a slot if there is one."""
        if self._map is None or not 0 < 2 * length <= SLOT_BYTES or (slot := self._free_slot()) is None:
            return new_samples(length)
        samples = np.frombuffer(self._map, np.int16, length, slot * SLOT_BYTES)
        weakref.finalize(samples, self._release, slot, samples.nbytes).atexit = False
        return samples

    def copied(self, samples: Samples) -> Samples:
        """The same audio, int16 [samples], in a slot if there is one, else `samples` itself."""
        copy = self.new_samples(len(samples))
        if self.place(copy) is None:
            return samples
        copy[:] = samples
        return copy

    def _free_slot(self) -> int | None:
        for free in (self._warm, self._cold):
            with suppress(IndexError):
                return free.pop()
        return None

    def place(self, samples: Samples) -> Place | None:
        """Where an array, int16 [samples], is; None if it is not in the memory."""
        offset_bytes = samples.ctypes.data - self._address if self._map is not None else -1
        is_inside = 0 <= offset_bytes < SLOTS * SLOT_BYTES and samples.flags.c_contiguous and samples.dtype == np.int16
        return Place(self._path, self._file, offset_bytes, len(samples)) if is_inside else None

    def _release(self, slot: int, size_bytes: int) -> None:
        if size_bytes <= MAX_KEPT_BYTES and len(self._warm) < MAX_KEPT_SLOTS:
            self._warm.append(slot)
        else:
            assert self._map is not None
            with suppress(OSError):  # Not every kernel can.
                self._map.madvise(mmap.MADV_REMOVE, slot * SLOT_BYTES, SLOT_BYTES)
            self._cold.append(slot)


class SentAudio:
    """An argument of a call: the replica gets an array, int16 [samples], or its `Place`, see `received`."""

    def __init__(self, samples: Samples, place: Place | None = None) -> None:
        """The caller keeps `samples` until the call is answered: later, other audio may be in its place."""
        self.samples = samples
        self._place = place
        self.is_near = False
        """Whether the replica is on this node. The router sets it, before each time that Serve pickles the call."""

    def __len__(self) -> int:
        return len(self.samples)

    def __reduce__(self) -> tuple[object, ...]:
        # The replica gets what these make, not a SentAudio.
        if self.is_near and self._place is not None:
            return Place, tuple(self._place)
        return np.asarray, (self.samples,)


def received(audio: Samples | Place, new_samples: NewSamples) -> Samples:
    """What a replica got for a `SentAudio`, as an array, int16 [samples], made by `new_samples` where it is a copy.

    Raises AudioUnreachable.
    """
    return audio.read(new_samples) if isinstance(audio, Place) else audio
