"""A growing file: the reader waits for bytes, gets them in order, and gets the end."""

import asyncio
import io
import os
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, cast

import numpy as np
import pytest

from serve_app.audio.decoding import AudioFile
from serve_app.audio.growing_file import GrowingFile
from serve_app.errors import StorageFull
from serve_app.window import SAMPLE_RATE
from testing import media

TIMEOUT_S = 10.0
"""Maximum time for a reader to wake up, seconds."""


def in_thread(read: Callable[[], bytes]) -> "asyncio.Future[bytes]":
    """Call `read` in another thread. As a daemon thread, a reader that never wakes up fails the test without blocking its end."""
    loop = asyncio.get_running_loop()
    result: asyncio.Future[bytes] = loop.create_future()
    threading.Thread(target=lambda: loop.call_soon_threadsafe(result.set_result, read()), daemon=True).start()
    return result


async def test_a_reader_waits_for_bytes() -> None:
    with GrowingFile() as file:
        reading = in_thread(lambda: file.read(100))
        assert not (await asyncio.wait([reading], timeout=0.05))[0]
        await file.write(b"abc")
        assert await asyncio.wait_for(reading, TIMEOUT_S) == b"abc"


async def test_finish_wakes_a_waiting_reader_with_the_end() -> None:
    with GrowingFile() as file:
        reading = in_thread(lambda: file.read(100))
        assert not (await asyncio.wait([reading], timeout=0.05))[0]
        file.finish()
        assert await asyncio.wait_for(reading, TIMEOUT_S) == b""


async def test_abort_wakes_a_waiting_reader_and_leaves_the_remaining_bytes() -> None:
    with GrowingFile() as file:
        reading = in_thread(lambda: file.read(100))
        assert not (await asyncio.wait([reading], timeout=0.05))[0]
        file.abort()
        assert await asyncio.wait_for(reading, TIMEOUT_S) == b""
        await file.write(b"abc")
        assert file.read(100) == b""


async def test_the_remaining_bytes_come_before_the_end() -> None:
    with GrowingFile() as file:
        await file.write(b"abcde")
        file.finish()
        assert [file.read(3), file.read(3), file.read(3), file.read(3)] == [b"abc", b"de", b"", b""]


async def test_bytes_come_in_order_while_the_file_grows() -> None:
    data = np.random.default_rng(0).bytes(200_000)

    def read_all() -> bytes:
        pieces = []
        while piece := file.read(777):
            assert len(piece) <= 777
            pieces.append(piece)
        return b"".join(pieces)

    with GrowingFile() as file:
        reading = in_thread(read_all)
        for start in range(0, len(data), 5_000):
            await file.write(data[start : start + 5_000])
        file.finish()
        assert await asyncio.wait_for(reading, TIMEOUT_S) == data


async def test_the_whole_file_is_available_once_it_is_complete() -> None:
    with GrowingFile() as file:
        assert not file.seekable()
        await file.write(b"abc")
        assert file.read(2) == b"ab"
        await file.write(b"def")
        assert not file.completed.is_set()
        file.finish()
        assert file.completed.is_set()
        assert file.whole.seekable()
        assert file.whole.read() == b"abcdef"


async def test_the_file_is_gone_after_exit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with GrowingFile() as file:
        await file.write(b"abc")
    assert file.completed.is_set()
    assert await asyncio.to_thread(os.listdir, tmp_path) == []
    with pytest.raises(ValueError, match="closed"):
        _ = file.whole


async def test_decoding_starts_before_the_upload_is_complete() -> None:
    data = media.wav(media.chirp(30.0))
    with GrowingFile() as file:
        await file.write(data[: len(data) // 2])
        blocks = AudioFile(cast(BinaryIO, file)).stream()
        decoded = [await asyncio.wait_for(anext(blocks), TIMEOUT_S)]
        await file.write(data[len(data) // 2 :])
        file.finish()
        decoded += [block async for block in blocks]
    assert sum(map(len, decoded)) == 30 * SAMPLE_RATE
    assert np.array_equal(np.concatenate(decoded), np.concatenate([*AudioFile(io.BytesIO(data)).blocks()]))


async def test_a_full_disk_is_an_error_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    # Every write to this device fails with ENOSPC; like a temporary file it has a buffer, which closing writes again.
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda: os.fdopen(os.open("/dev/full", os.O_RDWR), "wb"))
    with pytest.raises(StorageFull), GrowingFile() as file:
        await file.write(b"abc")
