"""Files go through a decoder process as through the decoder itself; many at once, and while they are sent."""

import asyncio
import io
import os

import numpy as np
import psutil
import pytest

from serve_app.audio.growing_file import GrowingFile
from serve_app.decoders.pool import DecoderPool
from serve_app.decoders.recording import MIN_BIT_RATE, Recording
from serve_app.decoders.sandbox import MAX_JOBS
from serve_app.errors import AudioError
from serve_app.merging.gaps import frame_levels
from serve_app.window import SAMPLE_RATE, Window
from testing import fuzz_media, media
from testing.decoding import CUT, assert_same_windows, noise, windows_of_file
from testing.open_requests import until

TIMEOUT_S = 20.0


async def read(recording: Recording) -> list[Window]:
    return [window async for window in recording.windows(*CUT)]


@pytest.mark.parametrize("name", ["mp3", "m4a", "webm, vorbis", "opus, six channels", "flac", "amr", "avi, pcm"])
async def test_the_windows_are_those_of_the_decoder(pool: DecoderPool, name: str) -> None:
    data = media.make(name, media.chirp(12.0))
    recording = pool.open(io.BytesIO(data))
    windows = await read(recording)
    assert_same_windows(windows, windows_of_file(data, *CUT))
    assert recording.warnings == ()
    assert recording.announced_s == pytest.approx(12.0, abs=0.3)


async def test_a_file_is_expected_to_be_as_long_as_its_bytes_allow(pool: DecoderPool) -> None:
    data = media.make("flac", media.chirp(3.0))
    recording = pool.open(io.BytesIO(data))
    assert recording.expected_s is None
    await read(recording)
    assert recording.expected_s == recording.announced_s == pytest.approx(3.0, abs=0.1)
    recording.announced_s = 86_400.0
    assert recording.expected_s == 8 * len(data) / MIN_BIT_RATE


async def test_of_a_file_that_is_still_being_sent_nothing_is_expected(pool: DecoderPool) -> None:
    with GrowingFile() as file:
        await file.write(media.make("flac", media.chirp(3.0)))
        recording = pool.open(file)
        recording.announced_s = 3.0
        assert recording.expected_s is None
        file.finish()
        await read(recording)
        assert recording.expected_s == pytest.approx(3.0, abs=0.1)


async def test_windows_have_levels_and_no_digital_silence(pool: DecoderPool) -> None:
    samples = np.concatenate([media.chirp(3.0), np.zeros(3 * SAMPLE_RATE, np.float32), media.chirp(3.0)])
    windows = await read(pool.open(io.BytesIO(media.wav(samples))))
    assert len(windows) > 2
    for window in windows:
        assert window.levels is not None
        assert np.allclose(window.levels, frame_levels(window.samples), rtol=1e-6)
        assert np.count_nonzero(window.samples) > 0.5 * len(window.samples)


async def test_a_recording_shorter_than_a_frame(pool: DecoderPool) -> None:
    (window,) = await read(pool.open(io.BytesIO(media.wav(media.tone(0.02)))))
    assert (len(window.samples), len(window.levels if window.levels is not None else [0])) == (320, 0)


async def test_warnings_and_the_track(pool: DecoderPool) -> None:
    data = bytearray(media.make("mp3", media.tone(12)))
    data[len(data) // 2 : len(data) // 2 + 4_000] = bytes(4_000)
    recording = pool.open(io.BytesIO(data))
    await read(recording)
    assert len(recording.warnings) == 1
    with pytest.raises(AudioError) as caught:
        await read(pool.open(io.BytesIO(data), track=1))
    assert caught.value.param == "track"


@pytest.mark.parametrize("data", [b"", b"text" * 100, media.wav(np.zeros(0, np.int16))])
async def test_a_file_without_audio_is_an_error(pool: DecoderPool, data: bytes) -> None:
    with pytest.raises(AudioError):
        await read(pool.open(io.BytesIO(data)))


@pytest.mark.slow
async def test_damaged_files_are_decoded_or_refused(pool: DecoderPool) -> None:
    before = pool.pids
    for label, data in fuzz_media.damaged_files(fuzz_media.seed_files(), 250, 3):
        try:
            await read(pool.open(io.BytesIO(data)))
        except AudioError:
            continue
        except Exception as error:
            raise AssertionError(label) from error
    assert pool.pids == before


async def test_only_the_allowed_containers(pool: DecoderPool) -> None:
    with pytest.raises(AudioError):
        await read(pool.open(io.BytesIO(noise(1)), formats=["flac"]))
    assert await pool.recognises(media.make("mpeg-ts", media.tone(1))[:4096])
    assert not await pool.recognises(np.random.default_rng(0).bytes(4096))


async def test_more_files_at_once_than_a_process_takes(pool: DecoderPool) -> None:
    data = noise(1)
    expected = windows_of_file(data, *CUT)
    for windows in await asyncio.gather(*(read(pool.open(io.BytesIO(data))) for _ in range(2 * MAX_JOBS))):
        assert_same_windows(windows, expected)


async def test_short_files_do_not_wait_for_long_ones(pool: DecoderPool) -> None:
    long_files = [asyncio.ensure_future(read(pool.open(io.BytesIO(noise(900))))) for _ in range(2)]
    await asyncio.sleep(0.1)
    await asyncio.gather(*(read(pool.open(io.BytesIO(noise(5)))) for _ in range(20)))
    assert not any(file.done() for file in long_files)
    for file in long_files:
        file.cancel()
    await asyncio.wait(long_files)


async def test_a_file_that_is_read_slowly_does_not_hold_up_others(pool: DecoderPool) -> None:
    stalled = pool.open(io.BytesIO(noise(60))).windows(*CUT)
    await anext(stalled)
    async with asyncio.timeout(TIMEOUT_S):
        assert len(await read(pool.open(io.BytesIO(noise(30))))) > 5
    await stalled.aclose()


async def test_a_closed_recording_leaves_nothing_behind(pool: DecoderPool) -> None:
    (process,) = (psutil.Process(pid) for pid in pool.pids)
    seen = []
    for _ in range(2):
        await read(pool.open(io.BytesIO(noise(5))))
        seen.append({thread.id for thread in process.threads()})
    # The thread of a recording may end, and close its file, just after its last window.
    threads = len(seen[0] & seen[1])
    await until(lambda: process.num_threads() <= threads)
    files, own = descriptors(process), descriptors(psutil.Process())
    recordings = [pool.open(io.BytesIO(noise(120))).windows(*CUT) for _ in range(8)]
    for windows in recordings:
        await anext(windows)
        await windows.aclose()
    await until(lambda: process.num_threads() <= threads)
    assert (descriptors(process), descriptors(psutil.Process())) == (files, own)


def descriptors(process: psutil.Process) -> dict[str, str]:
    """What each descriptor of a process refers to, by its number."""
    folder = f"/proc/{process.pid}/fd"
    links = {name: os.path.join(folder, name) for name in os.listdir(folder)}
    return {name: os.readlink(link) for name, link in links.items() if os.path.islink(link)}


class TestGrowingFile:
    async def test_it_is_decoded_while_it_comes_in(self, pool: DecoderPool) -> None:
        data = noise(30)
        with GrowingFile() as file:
            windows = pool.open(file).windows(*CUT)
            first = asyncio.ensure_future(anext(windows))
            for start in range(0, len(data) // 2, 10_000):
                await file.write(data[start : start + 10_000])
            start += 10_000
            received = [await asyncio.wait_for(first, TIMEOUT_S)]
            await file.write(data[start:])
            file.finish()
            received += [window async for window in windows]
        assert_same_windows(received, windows_of_file(data, *CUT))

    async def test_while_it_waits_others_are_decoded(self, pool: DecoderPool) -> None:
        with GrowingFile() as file:
            waiting = asyncio.ensure_future(anext(pool.open(file).windows(*CUT), None))
            await file.write(noise(30)[:1000])
            async with asyncio.timeout(TIMEOUT_S):
                assert len(await read(pool.open(io.BytesIO(noise(30))))) > 5
            assert not waiting.done()
            file.finish()
            assert await asyncio.wait_for(waiting, TIMEOUT_S) is not None

    async def test_it_is_closed_while_it_waits(self, pool: DecoderPool) -> None:
        with GrowingFile() as file:
            windows = pool.open(file).windows(*CUT)
            reading = asyncio.ensure_future(anext(windows))
            await file.write(noise(30)[:1000])
            await asyncio.sleep(0.05)
            reading.cancel()
            async with asyncio.timeout(TIMEOUT_S):
                await asyncio.wait([reading])
                await read(pool.open(io.BytesIO(noise(5))))
