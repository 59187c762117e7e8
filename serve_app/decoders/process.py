"""One decoder process, as its ingress sees it."""

import logging
import os
import select
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from importlib.util import find_spec
from pathlib import Path

from serve_app.decoders import messages, shared_memory
from serve_app.decoders.messages import Ended, Failed, Message, Ready, SlotFree, Starved, WindowDone
from serve_app.decoders.shared_memory import SharedMemory
from serve_app.window import NewSamples, Window

log = logging.getLogger("ray.serve")

WORKER = "serve_app.decoders.worker"
"""The program of the process."""

PACKAGES = ("serve_app", "av", "numpy")
"""What it imports besides the standard library."""

START = """
import os, runpy, sys
sys.path += sys.argv.pop(1).split(os.pathsep)
runpy.run_module(sys.argv.pop(1), run_name="__main__")
"""
"""Runs it with the folders of PACKAGES behind those of the standard library, so that no file beside the server's own script
takes the place of a module."""

SEND_TIMEOUT_S = 1.0
"""A process that does not read what it is sent for this long is stuck, seconds. Usually it reads within milliseconds."""

MAX_LINE_BYTES = 1 << 20
"""Maximum length of a message, bytes."""

ENVIRONMENT = {
    # One file is decoded by one thread at a time.
    "OPENBLAS_NUM_THREADS": "1",
    # Otherwise every thread reserves address space of its own.
    "MALLOC_ARENA_MAX": "1",
    # Otherwise glibc asks the system for every large array anew, which then clears it page by page: a fifth of the time.
    "MALLOC_MMAP_THRESHOLD_": str(32 << 20),
    "MALLOC_TRIM_THRESHOLD_": str(64 << 20),
}
INHERITED = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL")
"""Environment variables that a decoder process gets. The others may hold keys."""

Receive = Callable[["DecoderProcess", int, Message, Window | None], None]
"""Takes a message about a job: the process, the number of the job, the message, and the window that comes with it."""


class DecoderProcess:
    """Starts a process. In a thread of its own, it calls `receive` for every message about a job, and `on_end` when it has ended.

    A process that breaks the protocol is killed. Raises OSError if the system cannot start one.
    """

    def __init__(self, receive: Receive, on_end: "Callable[[DecoderProcess], None]", new_samples: NewSamples) -> None:
        """`new_samples` makes the arrays of windows."""
        self._new_samples = new_samples
        inherited = {name: os.environ[name] for name in INHERITED if name in os.environ}
        with ExitStack() as theirs, ExitStack() as ours:
            memory = shared_memory.create()
            theirs.callback(os.close, memory)
            self._memory = SharedMemory(memory)
            self._connection, connection = _pair(ours, theirs)
            self._descriptors, descriptors = _pair(ours, theirs)
            numbers = [connection.fileno(), descriptors.fileno(), memory]
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", START, _path(), WORKER, *map(str, numbers)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                pass_fds=numbers,
                env=inherited | ENVIRONMENT,
            )
            ours.pop_all()
        self._sending = threading.Lock()
        self.is_ready = False
        """Whether it has been started completely."""
        threading.Thread(target=self._run, args=(receive, on_end), name=f"decoder {self.pid}", daemon=True).start()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """None while it runs; negative: the signal that ended it."""
        return self._process.returncode

    @property
    def current_job(self) -> int:
        """Number of the job that it is decoding, or was when it ended; 0: none."""
        return self._memory.job

    def send(self, message: Message, descriptor: int | None = None) -> None:
        """Send a message, and a descriptor for `Open`. A process that does not read what it is sent is killed."""
        with self._sending:
            try:
                if descriptor is not None:
                    _wait_for_room(self._descriptors)
                    socket.send_fds(self._descriptors, [b"-"], [descriptor], socket.MSG_DONTWAIT)
                line = messages.encode(message)
                _wait_for_room(self._connection)
                if self._connection.send(line, socket.MSG_DONTWAIT) < len(line):
                    self.kill()
            except (OSError, ValueError):
                # It has ended, or is stuck. ValueError: the sockets are closed.
                self.kill()

    def kill(self) -> None:
        """End the process. `on_end` follows."""
        self._process.kill()

    def _run(self, receive: Receive, on_end: "Callable[[DecoderProcess], None]") -> None:
        try:
            with self._connection.makefile("rb") as lines:
                while line := lines.readline(MAX_LINE_BYTES):
                    self._take(messages.decode(line), receive)
        except ConnectionResetError:
            # So ends the connection of a process that is killed.
            pass
        except Exception:
            log.exception("decoder process %d broke the protocol", self.pid)
        finally:
            self._process.kill()
            self._process.wait()
            with self._sending:
                self._connection.close()
                self._descriptors.close()
            on_end(self)

    def _take(self, message: Message, receive: Receive) -> None:
        match message:
            case Ready():
                self.is_ready = True
            case WindowDone(number, slot, index, start, samples, _, channel):
                audio, levels = self._memory.read(slot, samples, self._new_samples)
                self.send(SlotFree(slot))
                receive(self, number, message, Window(index, start, audio, levels=levels, channel=channel))
            case Starved(number) | Ended(number) | Failed(number):
                receive(self, number, message, None)
            case _:
                raise ValueError("unexpected message")


def _pair(ours: ExitStack, theirs: ExitStack) -> tuple[socket.socket, socket.socket]:
    """Two connected sockets; each stack closes one."""
    our_end, their_end = socket.socketpair()
    return ours.enter_context(our_end), theirs.enter_context(their_end)


def _wait_for_room(connection: socket.socket) -> None:
    room = select.poll()
    room.register(connection, select.POLLOUT)
    room.poll(1000 * SEND_TIMEOUT_S)


def _path() -> str:
    specs = [spec for name in PACKAGES if (spec := find_spec(name)) is not None]
    return os.pathsep.join(dict.fromkeys(str(Path(str(spec.origin)).parents[1]) for spec in specs))
