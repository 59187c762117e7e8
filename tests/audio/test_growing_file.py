"""A growing file: its size and its end are told, and it leaves nothing behind."""

import asyncio
import os
import tempfile
from pathlib import Path

import pytest

from serve_app.audio.growing_file import GrowingFile
from serve_app.errors import StorageFull


async def test_growth_and_the_end_are_told() -> None:
    told = []
    with GrowingFile() as file:
        file.on_growth = lambda: told.append((os.pread(file.fileno(), 10, 0), file.size_bytes, file.completed.is_set()))
        await file.write(b"abc")
        await file.write(b"de")
        file.finish()
    assert told[:3] == [(b"abc", 3, False), (b"abcde", 5, False), (b"abcde", 5, True)]


async def test_the_whole_file_is_available() -> None:
    with GrowingFile() as file:
        await file.write(b"abc")
        await file.write(b"def")
        file.finish()
        assert file.whole.seek(0) == 0
        assert file.whole.read() == b"abcdef"


async def test_the_file_is_gone_after_exit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with GrowingFile() as file:
        await file.write(b"abc")
    assert file.completed.is_set()
    assert await asyncio.to_thread(os.listdir, tmp_path) == []
    with pytest.raises(ValueError, match="closed"):
        file.fileno()


async def test_a_full_disk_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every write to this device fails with ENOSPC; like a temporary file it has a buffer, which closing writes again.
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: os.fdopen(os.open("/dev/full", os.O_RDWR), "wb"))
    with pytest.raises(StorageFull), GrowingFile() as file:
        await file.write(b"abc")
