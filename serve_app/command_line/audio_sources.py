"""Sources of live audio: the microphone, a file sent in real time, or standard input."""

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from serve_app.audio.decoding import AudioFile
from serve_app.command_line.client import Failure
from serve_app.errors import SpeechError
from serve_app.window import SAMPLE_RATE

CHUNK_S = 0.1
"""Audio in a chunk from a file or the microphone, seconds."""

READ_BYTES = 3_200
"""Maximum read from standard input, bytes."""

NO_MICROPHONE = (
    "no microphone is available: {}. Name a file, or - for standard input, or install what is missing "
    "(pip install sounddevice; on Debian also apt install libportaudio2)"
)


@dataclass(frozen=True, slots=True)
class AudioSource:
    """Live audio as bytes, and the fields of the stream's configuration that describe it."""

    config: dict[str, Any]
    chunks: AsyncIterator[bytes]
    """Raises Failure."""


def from_file(path: Path, *, multichannel: bool = False) -> AudioSource:
    """Any audio or video file, decoded to 16-bit samples and sent in real time. `multichannel`: its channels are not mixed.

    Raises Failure.
    """
    channels = _count_channels(path) if multichannel else 1
    config = {"encoding": "pcm_s16le", "sample_rate": SAMPLE_RATE, "channels": channels}
    return AudioSource(config, _in_real_time(path, channels, multichannel=multichannel))


def from_standard_input(encoding: str | None, rate: int, channels: int) -> AudioSource:
    """Standard input as it is. Without an encoding the server detects a media file; anything else is 16-bit samples."""
    config = {"sample_rate": rate, "channels": channels, **({"encoding": encoding} if encoding else {})}
    return AudioSource(config, _read_standard_input())


def from_microphone() -> AudioSource:
    """The system's default input device. Raises Failure."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise Failure(NO_MICROPHONE.format(error)) from error
    try:
        rate = round(sounddevice.query_devices(kind="input")["default_samplerate"])
    except (sounddevice.PortAudioError, ValueError) as error:
        raise Failure(NO_MICROPHONE.format(error)) from error
    return AudioSource({"encoding": "pcm_s16le", "sample_rate": rate}, _record(sounddevice, rate))


async def _in_real_time(path: Path, channels: int, *, multichannel: bool) -> AsyncIterator[bytes]:
    size = round(CHUNK_S * SAMPLE_RATE)
    with _opened(path) as file:
        rest, sent, began_s = np.zeros((0, channels), np.int16), 0, time.monotonic()
        blocks = AudioFile(file, multichannel=multichannel).blocks()
        while (block := await asyncio.to_thread(next, blocks, None)) is not None:
            rest = np.concatenate([rest, block.reshape(channels, -1).T])
            for start in range(0, len(rest) // size * size, size):
                await asyncio.sleep(max(0.0, began_s + sent * CHUNK_S - time.monotonic()))
                yield rest[start : start + size].tobytes()
                sent += 1
            rest = rest[len(rest) // size * size :]
        yield rest.tobytes()


def _count_channels(path: Path) -> int:
    with _opened(path) as file:
        audio = AudioFile(file, multichannel=True)
        next(audio.blocks())
        return audio.channels or 1


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """A file to decode. Raises Failure, also for what is wrong with it while the block runs."""
    try:
        with path.open("rb") as file:
            yield file
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}") from error
    except SpeechError as error:
        raise Failure(f"{path}: {error.message}") from error


async def _read_standard_input() -> AsyncIterator[bytes]:
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[bytes | Exception](maxsize=1)

    def read() -> None:
        data: bytes | Exception = b" "
        while data and isinstance(data, bytes):
            try:
                data = os.read(sys.stdin.fileno(), READ_BYTES)
            except (OSError, ValueError, AttributeError) as error:
                data = error
            with contextlib.suppress(CancelledError, RuntimeError):
                # Both are raised once the event loop is gone.
                asyncio.run_coroutine_threadsafe(queue.put(data), loop).result()

    # A daemon thread, so that Ctrl-C does not wait for a blocking read.
    threading.Thread(target=read, daemon=True).start()
    while data := await queue.get():
        if isinstance(data, Exception):
            raise Failure(f"standard input cannot be read: {data}") from data
        yield data


async def _record(sounddevice: Any, rate: int) -> AsyncIterator[bytes]:
    loop, queue = asyncio.get_running_loop(), asyncio.Queue[bytes]()

    def put(data: Any, _frames: int, _times: Any, _status: Any) -> None:
        loop.call_soon_threadsafe(queue.put_nowait, bytes(data))

    size = round(CHUNK_S * rate)
    try:
        with sounddevice.RawInputStream(samplerate=rate, channels=1, dtype="int16", blocksize=size, callback=put):
            while True:
                yield await queue.get()
    except sounddevice.PortAudioError as error:
        raise Failure(NO_MICROPHONE.format(error)) from error
