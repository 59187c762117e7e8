"""A file that grows while it is decoded: an upload is written to it, and a decoder process reads it."""

import asyncio
import contextlib
import os
import tempfile
from collections.abc import Callable
from types import TracebackType
from typing import BinaryIO, Self, cast

from serve_app.errors import StorageFull


class GrowingFile:
    """A temporary file without a name, which is deleted when it is closed. A writer never waits for the reader."""

    def __init__(self, file: BinaryIO | None = None, final_bytes: int | None = None) -> None:
        """`file`: one that somebody else writes; None: a new one, for `write`. `final_bytes`: how large it will be, if known."""
        self._file = file or cast(BinaryIO, tempfile.TemporaryFile())  # noqa: SIM115  # closed by `close`
        self.final_bytes = final_bytes
        """With it, the file is read as if it were complete: also its end, when that has arrived. None: from start to end."""
        self.size_bytes = 0
        """Bytes that can be read."""
        self.completed = asyncio.Event()
        """Set when no more bytes will be written."""
        self.on_growth: Callable[[], None] = lambda: None
        """Called after every change."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self.finish()
        self.close()

    def close(self) -> None:
        # Closing writes the bytes of a failed write again; StorageFull has been raised for them.
        with contextlib.suppress(OSError):
            self._file.close()

    async def write(self, data: bytes) -> None:
        """Append bytes. Raises StorageFull if they cannot be stored."""
        try:
            await asyncio.to_thread(self._append, data)
        except OSError as error:
            raise StorageFull from error
        self.size_bytes += len(data)
        self.on_growth()

    def _append(self, data: bytes) -> None:
        self._file.write(data)
        self._file.flush()

    def notice_growth(self) -> None:
        """Somebody else may have written to the file. Bytes in the writer's buffer count later."""
        self.size_bytes = os.fstat(self.fileno()).st_size
        self.on_growth()

    def finish(self) -> None:
        """Mark the end of the file."""
        self.completed.set()
        self.on_growth()

    def fileno(self) -> int:
        return self._file.fileno()

    @property
    def whole(self) -> BinaryIO:
        """The complete file."""
        return self._file
