"""A file that grows while it is read: the event loop writes an upload to it, and the decoding thread reads it."""

import asyncio
import contextlib
import os
import tempfile
import threading
from types import TracebackType
from typing import BinaryIO, Self, cast

from serve_app.errors import StorageFull


class GrowingFile:
    """A temporary file without a name, which is deleted when it is closed. A writer never waits for the reader.

    It is not seekable, and `read` waits for bytes. Once `completed` is set, `whole` is the complete file.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__
        self.completed = asyncio.Event()
        """Set when no more bytes will be written."""
        self._written_bytes = self._read_bytes = 0
        self._is_aborted = False
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.finish()
        # Closing writes the bytes of a failed write again; StorageFull has been raised for them.
        with contextlib.suppress(OSError):
            self._file.close()

    async def write(self, data: bytes) -> None:
        """Append bytes. Raises StorageFull if they cannot be stored."""
        try:
            await asyncio.to_thread(self._append, data)
        except OSError as error:
            raise StorageFull from error
        with self._changed:
            self._written_bytes += len(data)
            self._changed.notify()

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()

    def finish(self) -> None:
        """Mark the end of the file. A reader gets the remaining bytes, then the end."""
        with self._changed:
            self.completed.set()
            self._changed.notify()

    def abort(self) -> None:
        """Give readers the end at once, whatever bytes remain."""
        with self._changed:
            self._is_aborted = True
            self._changed.notify()

    @property
    def whole(self) -> BinaryIO:
        """The complete file, seekable, at its start."""
        self._file.seek(0)
        return cast(BinaryIO, self._file)

    def seekable(self) -> bool:
        return False

    def read(self, size: int) -> bytes:
        """Wait for bytes and return the available ones, at most `size`; an empty result is the end. Blocks the thread."""
        with self._changed:
            while self._read_bytes == self._written_bytes and not self.completed.is_set() and not self._is_aborted:
                self._changed.wait()
            if self._is_aborted:
                return b""
            size = min(size, self._written_bytes - self._read_bytes)
        data = os.pread(self._file.fileno(), size, self._read_bytes)
        self._read_bytes += len(data)
        return data
