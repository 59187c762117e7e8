"""Decoder processes that end while they decode."""

import asyncio
import io
import os
import signal
import subprocess
import threading
from collections.abc import AsyncGenerator, Iterator
from pathlib import Path

import psutil
import pytest

from serve_app.audio.growing_file import GrowingFile
from serve_app.decoders import messages
from serve_app.decoders.pool import DecoderPool
from serve_app.decoders.recording import Recording
from serve_app.decoders.sandbox import MAX_JOBS
from serve_app.errors import AudioError, EngineError
from serve_app.window import Window
from testing import media
from testing.decoding import CUT, assert_same_windows, noise, windows_of_file
from testing.open_requests import until
from testing.server import status_bytes

TIMEOUT_S = 20.0


@pytest.fixture(scope="module")
def pool() -> Iterator[DecoderPool]:
    pool = DecoderPool(2)
    yield pool
    pool.close()


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
    expected, before, failures = windows_of_file(data, *CUT), set(pool.pids), pool.failures
    recordings = [pool.open(io.BytesIO(data)) for _ in range(12)]
    results = await asyncio.gather(*(read(recording, kill_at=5 if n == 3 else None) for n, recording in enumerate(recordings)))
    for windows in results:
        assert_same_windows(windows, expected)
    # The process of a recording that was tried alone ends with it.
    await until(lambda: len(pool.pids) == 2)
    assert len(set(pool.pids) - before) == 1
    assert pool.failures == failures + 1


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
    assert max(status_bytes(pid, "VmPeak") for pid in before) < 1_000_000_000


async def test_a_process_that_never_starts_is_an_error_of_the_server(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.executable", "/bin/false")
    pool = DecoderPool(2)
    for _ in range(2):
        with pytest.raises(EngineError):
            await asyncio.wait_for(read(pool.open(io.BytesIO(noise(5)))), TIMEOUT_S)
    monkeypatch.undo()
    assert len(await asyncio.wait_for(read(pool.open(io.BytesIO(noise(5)))), TIMEOUT_S)) == 2
    assert len(pool.pids) == 2
    pool.close()


async def test_a_system_that_starts_no_process_fails_recordings_and_not_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the recordings of a process that ends then, nor later ones, which might get descriptors of theirs."""
    pool, data = DecoderPool(1), noise(60)
    expected, windows = windows_of_file(data, *CUT), (recording := pool.open(io.BytesIO(data))).windows(*CUT)
    await anext(windows)

    def fail(*_: object, **__: object) -> None:
        raise BlockingIOError("no more processes")

    with monkeypatch.context() as patch:
        patch.setattr(subprocess, "Popen", fail)
        kill(recording)
        with pytest.raises(EngineError):
            await asyncio.wait_for(rest_of(windows), TIMEOUT_S)
        with pytest.raises(EngineError):
            await asyncio.wait_for(read(pool.open(io.BytesIO(data))), TIMEOUT_S)
    assert_same_windows(await read(pool.open(io.BytesIO(data))), expected)
    pool.close()


async def rest_of(windows: AsyncGenerator[Window, None]) -> None:
    async for _ in windows:
        pass


@pytest.mark.parametrize(
    "line", [b'["WindowDone", 1, "0", 0, 0, 16000, null]\n', b'["Open"]\n', b"[" * 100_000 + b"\n", b"x" * 2_000_000]
)
async def test_a_process_that_breaks_the_protocol_is_replaced(line: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    pool, data = DecoderPool(1), noise(30)
    recording = pool.open(io.BytesIO(data))
    windows = recording.windows(*CUT)
    received, (pid,), decode = [await anext(windows)], pool.pids, messages.decode

    def decode_once(_: bytes) -> messages.Message:
        monkeypatch.setattr(messages, "decode", decode)
        return decode(line)

    monkeypatch.setattr(messages, "decode", decode_once)
    async with asyncio.timeout(TIMEOUT_S):
        received += [window async for window in windows]
    assert_same_windows(received, windows_of_file(data, *CUT))
    assert pid not in pool.pids
    assert not psutil.pid_exists(pid)
    pool.close()


async def test_as_many_clients_come_as_leave(pool: DecoderPool) -> None:
    """Files that were closed are in their process until their next time slice."""
    data = noise(60)
    before, expected = pool.pids, windows_of_file(noise(5), *CUT)
    for _ in range(4):
        leaving = [pool.open(io.BytesIO(data)).windows(*CUT) for _ in range(2 * MAX_JOBS)]
        for windows in leaving:
            await anext(windows)
        for windows in leaving:
            await windows.aclose()
        for decoded in await asyncio.gather(*(read(pool.open(io.BytesIO(noise(5)))) for _ in range(2 * MAX_JOBS))):
            assert_same_windows(decoded, expected)
    assert pool.pids == before


async def test_recordings_of_one_open_file_do_not_share_its_position(pool: DecoderPool, tmp_path: Path) -> None:
    path = tmp_path / "x.wav"
    path.write_bytes(noise(60))
    with path.open("rb") as file:
        for windows in await asyncio.gather(*(read(pool.open(file)) for _ in range(8))):
            assert_same_windows(windows, windows_of_file(noise(60), *CUT))


async def test_a_closed_pool_leaves_no_process() -> None:
    closing = DecoderPool(1)
    (process,) = (psutil.Process(pid) for pid in closing.pids)
    await read(closing.open(io.BytesIO(noise(5))))
    closing.close()
    await until(lambda: not process.is_running())
