"""The memory that an ingress and one decoder process share: windows of audio on their way, and which job is being decoded."""

import mmap
import os
import tempfile

import numpy as np

from serve_app.window import FRAME_SAMPLES, MAX_WINDOW_S, SAMPLE_RATE, Levels, NewSamples, Samples

SLOTS = 2
"""Number of windows that can be on their way at a time: while one is copied, the next is written."""

HEADER_BYTES = mmap.PAGESIZE
MAX_SAMPLES = round(MAX_WINDOW_S * SAMPLE_RATE)
LEVELS_OFFSET = 2 * MAX_SAMPLES
SLOT_BYTES = LEVELS_OFFSET + 4 * (MAX_SAMPLES // FRAME_SAMPLES)


def create() -> int:
    """The descriptor of new memory. Only the parts that are used take space, and nothing is left when it is closed."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("windows")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, HEADER_BYTES + SLOTS * SLOT_BYTES)
    return descriptor


class SharedMemory:
    """A mapping of the memory. The descriptor may be closed afterwards."""

    def __init__(self, descriptor: int) -> None:
        self._map = mmap.mmap(descriptor, HEADER_BYTES + SLOTS * SLOT_BYTES)
        self._job = np.frombuffer(self._map, np.int64, 1)

    @property
    def job(self) -> int:
        """Number of the job that is being decoded; 0: none."""
        return int(self._job[0])

    @job.setter
    def job(self, number: int) -> None:
        self._job[0] = number

    def write(self, slot: int, samples: Samples, levels: Levels) -> None:
        """Put a window into a slot: int16 [samples], float32 [frames]."""
        self._samples(slot, len(samples))[:] = samples
        self._levels(slot, len(levels))[:] = levels

    def read(self, slot: int, samples: int, new_samples: NewSamples) -> tuple[Samples, Levels]:
        """A copy of a window with so many samples, in an array that `new_samples` makes.

        Raises ValueError if there is no such slot or no room for them.
        """
        if not (0 <= slot < SLOTS and 0 < samples <= MAX_SAMPLES):
            raise ValueError("a window outside the shared memory")
        copy = new_samples(samples)
        copy[:] = self._samples(slot, samples)
        return copy, self._levels(slot, samples // FRAME_SAMPLES).copy()

    def _samples(self, slot: int, length: int) -> Samples:
        return np.frombuffer(self._map, np.int16, length, HEADER_BYTES + slot * SLOT_BYTES)

    def _levels(self, slot: int, length: int) -> Levels:
        return np.frombuffer(self._map, np.float32, length, HEADER_BYTES + slot * SLOT_BYTES + LEVELS_OFFSET)
