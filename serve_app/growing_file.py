"""A file that is read while it is still being sent: written by an event loop, read by the thread that decodes."""

import asyncio
import threading

MOST_WAITING_BYTES = 1 << 20
"""What may be written ahead of the reader."""


class GrowingFile:
    """Not seekable. `read` waits for bytes; `write` waits for the reader."""

    def __init__(self) -> None:
        self._data = bytearray()
        self._is_complete = False
        self._changed = threading.Condition()
        self._loop = asyncio.get_running_loop()
        self._has_room = asyncio.Event()
        self._has_room.set()

    async def write(self, data: bytes) -> None:
        """Add bytes, once there is room."""
        await self._has_room.wait()
        with self._changed:
            self._data += data
            if len(self._data) >= MOST_WAITING_BYTES:
                self._has_room.clear()
            self._changed.notify()

    def finish(self) -> None:
        """No more bytes come. Whoever reads gets what is there, then the end; whoever writes goes on."""
        with self._changed:
            self._is_complete = True
            self._changed.notify()
        self._has_room.set()

    def seekable(self) -> bool:
        return False

    def read(self, size: int) -> bytes:
        """As many bytes as are there, at least one, at most `size`; none at the end."""
        with self._changed:
            while not self._data and not self._is_complete:
                self._changed.wait()
            data = bytes(self._data[:size])
            del self._data[:size]
            if len(self._data) < MOST_WAITING_BYTES:
                self._loop.call_soon_threadsafe(self._has_room.set)
        return data
