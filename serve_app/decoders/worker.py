"""The program of a decoder process. It ends when its ingress closes the connection, or ends itself.

It imports little, so that it starts quickly: neither Ray nor FastAPI.
"""

import contextlib
import io
import queue
import socket
import sys
import threading
import wave
from functools import partial

import numpy as np

from serve_app.audio.decoding import MAX_CHANNELS, AudioFile, preload
from serve_app.audio.dither import without_zeros
from serve_app.chunking import windows
from serve_app.decoders import messages
from serve_app.decoders.job import Job
from serve_app.decoders.messages import Close, Grown, Message, Open, Ready, Request, SlotFree
from serve_app.decoders.sandbox import MAX_INDEX_BYTES, MEMORY_PER_JOB_BYTES, Descriptors, Memory, forbid_core_dumps
from serve_app.decoders.shared_memory import SLOTS, SharedMemory
from serve_app.decoders.time_slices import TimeSlices
from serve_app.merging.gaps import frame_levels
from serve_app.window import SAMPLE_RATE

STACK_BYTES = 1 << 20
"""Stack of a job's thread, bytes."""


class Worker:
    """Receives the messages of the ingress, and runs the jobs."""

    def __init__(self, connection: socket.socket, descriptors: socket.socket, memory: SharedMemory) -> None:
        self._connection = connection
        self._descriptor_source = descriptors
        self._memory = memory
        self._time_slices = TimeSlices(memory)
        self._jobs: dict[int, Job] = {}
        self._free_slots: queue.SimpleQueue[int] = queue.SimpleQueue()
        for slot in range(SLOTS):
            self._free_slots.put(slot)
        self._sending = threading.Lock()
        self._lines = connection.makefile("rb")
        self._address_space = Memory()
        self._descriptors = Descriptors()

    def run(self) -> None:
        """Handle messages until the ingress is gone."""
        self._send(Ready())
        with contextlib.suppress(ConnectionResetError):
            for line in self._lines:
                self._handle(messages.decode(line))

    def _handle(self, message: Message) -> None:
        match message:
            case Open():
                self._open(message)
            case SlotFree(slot):
                self._free_slots.put(slot)
            case Request(number) | Grown(number) | Close(number):
                # It may have ended meanwhile.
                if (job := self._jobs.get(number)) is not None:
                    job.tell(message)

    def _open(self, opening: Open) -> None:
        self._descriptors.wait_for_room()
        # In a time slice of its own: while a descriptor is received, one number is free, which a file must not get.
        self._time_slices.begin(0)
        descriptor = self._descriptors.receive(self._descriptor_source)
        self._time_slices.end()
        windows_bytes = 4 * round(2 * opening.window_s * SAMPLE_RATE) * (MAX_CHANNELS if opening.multichannel else 1)
        memory_bytes = MEMORY_PER_JOB_BYTES + windows_bytes + min(opening.size_bytes or 0, MAX_INDEX_BYTES)
        self._address_space.add(memory_bytes)
        job = Job(opening, descriptor, self._memory, self._time_slices, self._free_slots, self._send)
        self._jobs[opening.job] = job

        def end() -> None:
            self._jobs.pop(opening.job)
            self._descriptors.close(descriptor)
            self._address_space.add(-memory_bytes)

        threading.Thread(target=partial(job.run, end), daemon=True).start()

    def _send(self, message: Message) -> None:
        """Without effect if the ingress is gone, which ends `run`."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError), self._sending:
            self._connection.sendall(messages.encode(message))


def _warm_up() -> None:
    """Import, and use once, whatever is imported late: afterwards no file can be opened."""
    preload()
    file = io.BytesIO()
    with wave.open(file, "wb") as writer:
        writer.setparams((2, 2, 8_000, 0, "NONE", ""))
        noise = np.random.RandomState(0).randint(-100, 100, 8_000).astype("<i2")
        writer.writeframes(np.concatenate([noise, np.zeros_like(noise)]).tobytes())
    file.seek(0)
    for window in windows(AudioFile(file).blocks(), 3.0, 1.5):
        frame_levels(without_zeros(window).samples)


def main() -> None:
    """Run with the descriptors of the connection, of the socket for descriptors, and of the shared memory as arguments."""
    connection, descriptors, memory = map(int, sys.argv[1:])
    forbid_core_dumps()
    threading.stack_size(STACK_BYTES)
    _warm_up()
    Worker(socket.socket(fileno=connection), socket.socket(fileno=descriptors), SharedMemory(memory)).run()


if __name__ == "__main__":
    main()
