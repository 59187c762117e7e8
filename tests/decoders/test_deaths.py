"""Decoder processes that end while they decode."""

import asyncio
import io
import os
import signal
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from serve_app.audio.growing_file import GrowingFile
from serve_app.decoders.pool import DecoderPool
from serve_app.decoders.recording import Recording
from serve_app.errors import AudioError
from serve_app.window import SAMPLE_RATE, Window
from testing import media
from testing.decoding import assert_same_windows, windows_of_file

CUT = (4.0, 1.5)
"""Window and overlap, seconds."""

TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(2)
    yield pool
    pool.close()


def noise(seconds: float) -> bytes:
    return media.wav(np.random.default_rng(0).integers(-3000, 3000, round(seconds * SAMPLE_RATE), dtype=np.int16))


def kill(recording: Recording) -> None:
    assert recording.process is not None
    os.kill(recording.process.pid, signal.SIGKILL)


async def read(recording: Recording, kill_at: int | None = None) -> list[Window]:
    """The windows. The process is killed when it has sent `kill_at` of them."""
    windows = []
    async for window in recording.windows(*CUT):
        windows.append(window)
        if len(windows) == kill_at:
            kill(recording)
    return windows


@pytest.mark.slow
@pytest.mark.parametrize("name", media.FORMATS)
async def test_a_process_killed_in_mid_file_changes_nothing(pool: DecoderPool, name: str) -> None:
    data = media.make(name, media.chirp(20.0))
    recording = pool.open(io.BytesIO(data))
    assert_same_windows(await read(recording, kill_at=2), windows_of_file(data, *CUT))
    assert recording.warnings == ()


async def test_all_files_of_a_killed_process_continue(pool: DecoderPool) -> None:
    data = noise(60)
    expected, before = windows_of_file(data, *CUT), set(pool.pids)
    recordings = [pool.open(io.BytesIO(data)) for _ in range(12)]
    results = await asyncio.gather(*(read(recording, kill_at=5 if n == 3 else None) for n, recording in enumerate(recordings)))
    for windows in results:
        assert_same_windows(windows, expected)
    # The process of a recording that was tried alone ends with it.
    await until(lambda: len(pool.pids) == 2)
    assert len(set(pool.pids) - before) == 1


async def test_a_growing_file_continues(pool: DecoderPool) -> None:
    data = noise(30)
    with GrowingFile() as file:
        recording = pool.open(file)
        reading = asyncio.ensure_future(read(recording, kill_at=2))
        for start in range(0, len(data), 100_000):
            await file.write(data[start : start + 100_000])
            await asyncio.sleep(0.01)
        file.finish()
        windows = await asyncio.wait_for(reading, TIMEOUT_S)
    assert_same_windows(windows, windows_of_file(data, *CUT))


async def test_a_file_that_ends_two_processes_fails_alone(pool: DecoderPool) -> None:
    deadly, harmless = pool.open(io.BytesIO(noise(1_800))), [pool.open(io.BytesIO(noise(60))) for _ in range(8)]
    failing, is_over = asyncio.ensure_future(read(deadly)), threading.Event()

    def kill_whatever_decodes_it() -> None:
        while not is_over.wait(1e-4):
            process = deadly.process
            if process is not None and process.current_job == deadly.number:
                process.kill()

    killing = asyncio.ensure_future(asyncio.to_thread(kill_whatever_decodes_it))
    try:
        for windows in await asyncio.gather(*map(read, harmless)):
            assert_same_windows(windows, windows_of_file(noise(60), *CUT))
        with pytest.raises(AudioError, match="crashes the decoder"):
            await asyncio.wait_for(failing, TIMEOUT_S)
    finally:
        is_over.set()
        await killing
    await until(lambda: len(pool.pids) == 2)


async def test_a_forged_packet_gets_no_more_memory_than_the_process(pool: DecoderPool, tmp_path: Path) -> None:
    """The index names a packet of 2 GB, and the file has as many bytes: a hole in a sparse file."""
    path, packet_bytes, before = tmp_path / "forged.m4a", 2_000_000_000, pool.pids
    data = bytearray(media.make("m4a", media.chirp(12.0)))
    sizes = data.index(b"stsz") + 16
    data[sizes : sizes + 4] = packet_bytes.to_bytes(4, "big")
    path.write_bytes(data)
    os.truncate(path, packet_bytes + len(data))
    harmless = asyncio.ensure_future(read(pool.open(io.BytesIO(noise(60)))))
    with path.open("rb") as file:
        recording = pool.open(file)
        try:
            await read(recording)
        except AudioError:
            pass
        else:
            assert recording.warnings
    assert_same_windows(await harmless, windows_of_file(noise(60), *CUT))
    assert pool.pids == before
    assert max(map(peak_bytes, before)) < 1_000_000_000


async def test_a_process_that_never_starts_is_an_error_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    pool = DecoderPool(1)
    with pytest.raises(Exception, match="Internal error"):
        await asyncio.wait_for(read(pool.open(io.BytesIO(noise(5)))), TIMEOUT_S)
    monkeypatch.undo()
    assert len(await asyncio.wait_for(read(pool.open(io.BytesIO(noise(5)))), TIMEOUT_S)) == 2
    pool.close()


async def test_a_closed_pool_leaves_no_process() -> None:
    closing = DecoderPool(1)
    (process,) = (psutil.Process(pid) for pid in closing.pids)
    await read(closing.open(io.BytesIO(noise(5))))
    closing.close()
    await until(lambda: not process.is_running())


def peak_bytes(pid: int) -> int:
    """The largest address space that a process has had."""
    status = dict(line.split(":", 1) for line in Path(f"/proc/{pid}/status").read_text().splitlines())
    return 1024 * int(status["VmPeak"].split()[0])


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(TIMEOUT_S):
        while not condition():  # noqa: ASYNC110  # it waits for another process
            await asyncio.sleep(0.01)
