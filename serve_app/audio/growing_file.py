"""A file that is read while it is still being uploaded: written by the event loop, read by the decoding thread."""

import asyncio
import os
import tempfile
import threading
from types import TracebackType
from typing import BinaryIO, Self, cast

from serve_app.errors import StorageFull


class GrowingFile:
    """A temporary file without a name, so the sender never waits for the reader. It is deleted when it is closed.

    Not seekable: `read` waits for bytes. Once `completed` is set, `whole` is the complete file.
    """

    def __init__(self) -> None:
        self._file = tempfile.TemporaryFile()  # noqa: SIM115  # closed by __exit__
        self.completed = asyncio.Event()
        self._written = self._taken = 0
        self._changed = threading.Condition()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.finish()
        self._file.close()

    async def write(self, data: bytes) -> None:
        """Append bytes. Raises StorageFull."""
        try:
            await asyncio.to_thread(self._append, data)
        except OSError as error:
            raise StorageFull from error
        with self._changed:
            self._written += len(data)
            self._changed.notify()

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()

    def finish(self) -> None:
        """No more bytes come: a reader gets the remaining ones, then the end."""
        with self._changed:
            self.completed.set()
            self._changed.notify()

    @property
    def whole(self) -> BinaryIO:
        """The file, seekable, from its start."""
        self._file.seek(0)
        return cast(BinaryIO, self._file)

    def seekable(self) -> bool:
        return False

    def read(self, size: int) -> bytes:
        """Wait for at least one byte, and return those available, at most `size`; none at the end. Blocks the thread."""
        with self._changed:
            while self._taken == self._written and not self.completed.is_set():
                self._changed.wait()
            size = min(size, self._written - self._taken)
        data = os.pread(self._file.fileno(), size, self._taken)
        self._taken += len(data)
        return data
