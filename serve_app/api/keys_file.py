"""The file of `auth.keys_file`: an entry a line, read again when it changes."""

import logging
import time
from collections.abc import Callable
from pathlib import Path

from serve_app.key_entries import Key, parse

log = logging.getLogger("ray.serve")

CHECK_S = 1.0
"""Minimum time between two looks at the file, seconds."""


class KeysFile:
    """The keys of a file. Raises OSError or ValueError if the file cannot be read at first.

    Later, a file that cannot be read is logged, and the keys that were read last stay valid.
    """

    def __init__(self, path: Path, now_s: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._now_s = now_s
        self._checked_s = now_s()
        self._version = self._current_version()
        self._keys = self._read()

    @property
    def keys(self) -> tuple[Key, ...]:
        """The keys. The file is checked for a new version at most every CHECK_S."""
        now_s = self._now_s()
        if now_s - self._checked_s >= CHECK_S:
            self._checked_s = now_s
            if (version := self._current_version()) != self._version:
                self._version = version
                self._read_again()
        return self._keys

    def _read_again(self) -> None:
        try:
            self._keys = self._read()
            log.info("%s was read again: %d keys", self._path, len(self._keys))
        except (OSError, ValueError) as error:
            log.error("%s is not used; the keys read before stay valid: %s", self._path, error)

    def _read(self) -> tuple[Key, ...]:
        lines = (line.strip() for line in self._path.read_text(encoding="utf-8").splitlines())
        return parse(line for line in lines if line and not line.startswith("#"))

    def _current_version(self) -> tuple[int, int, int] | None:
        """What changes with the file; None if there is none."""
        try:
            status = self._path.stat()
        except OSError:
            return None
        return status.st_mtime_ns, status.st_size, status.st_ino
