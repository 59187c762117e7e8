"""Where live speech comes from: a microphone, a file at the pace of speech, or standard input."""

import asyncio
import contextlib
import os
import sys
import threading
import time
from collections.abc import AsyncIterator
from concurrent.futures import CancelledError
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from serve_app.audio.decoding import AudioFile
from serve_app.command_line.client import Failure
from serve_app.errors import SpeechError
from serve_app.window import SAMPLE_RATE

FRAME_S = 0.1
PIECE_BYTES = 3_200

NO_MICROPHONE = (
    "there is no microphone to listen to: {}. Name a file, or - for standard input, or install what is missing "
    "(pip install sounddevice; on Debian apt install libportaudio2)"
)


@dataclass(frozen=True, slots=True)
class Speech:
    """Pieces of audio as they come, and what they are: fields of the stream's configuration."""

    form: dict[str, Any]
    pieces: AsyncIterator[bytes]


def of_file(path: Path) -> Speech:
    """Any audio or video file, decoded here and sent at the pace of speech."""
    return Speech({"encoding": "pcm_s16le", "sample_rate": SAMPLE_RATE}, _paced(path))


def of_standard_input(encoding: str | None, rate: int, channels: int) -> Speech:
    """As it comes; without an encoding the server tells whether it is a media file or 16-bit samples."""
    form = {"sample_rate": rate, "channels": channels, **({"encoding": encoding} if encoding else {})}
    return Speech(form, _read())


def of_microphone() -> Speech:
    """The system's default input. Raises Failure."""
    try:
        import sounddevice
    except (ImportError, OSError) as error:
        raise Failure(NO_MICROPHONE.format(error)) from error
    try:
        rate = round(sounddevice.query_devices(kind="input")["default_samplerate"])
    except (sounddevice.PortAudioError, ValueError) as error:
        raise Failure(NO_MICROPHONE.format(error)) from error
    return Speech({"encoding": "pcm_s16le", "sample_rate": rate}, _recorded(sounddevice, rate))


async def _paced(path: Path) -> AsyncIterator[bytes]:
    step = round(FRAME_S * SAMPLE_RATE)
    try:
        with path.open("rb") as file:
            rest, sent, began_s = np.zeros(0, np.int16), 0, time.monotonic()
            async for block in AudioFile(file).stream():
                rest = np.concatenate([rest, block])
                for start in range(0, len(rest) // step * step, step):
                    await asyncio.sleep(max(0.0, began_s + sent * FRAME_S - time.monotonic()))
                    yield rest[start : start + step].tobytes()
                    sent += 1
                rest = rest[len(rest) // step * step :]
            yield rest.tobytes()
    except OSError as error:
        raise Failure(f"{path} cannot be read: {error.strerror}") from error
    except SpeechError as error:
        raise Failure(f"{path}: {error.message}") from error


async def _read() -> AsyncIterator[bytes]:
    loop, came = asyncio.get_running_loop(), asyncio.Queue[bytes | Exception](maxsize=1)

    def read() -> None:
        data: bytes | Exception = b" "
        while data and isinstance(data, bytes):
            try:
                data = os.read(sys.stdin.fileno(), PIECE_BYTES)
            except (OSError, ValueError, AttributeError) as error:
                data = error
            with contextlib.suppress(CancelledError, RuntimeError):
                # Both when nobody listens any more.
                asyncio.run_coroutine_threadsafe(came.put(data), loop).result()

    # A daemon, so that Ctrl-C need not wait for what is never said.
    threading.Thread(target=read, daemon=True).start()
    while data := await came.get():
        if isinstance(data, Exception):
            raise Failure(f"standard input cannot be read: {data}") from data
        yield data


async def _recorded(sounddevice: Any, rate: int) -> AsyncIterator[bytes]:
    loop, recorded = asyncio.get_running_loop(), asyncio.Queue[bytes]()

    def take(data: Any, _frames: int, _times: Any, _status: Any) -> None:
        loop.call_soon_threadsafe(recorded.put_nowait, bytes(data))

    step = round(FRAME_S * rate)
    try:
        with sounddevice.RawInputStream(samplerate=rate, channels=1, dtype="int16", blocksize=step, callback=take):
            while True:
                yield await recorded.get()
    except sounddevice.PortAudioError as error:
        raise Failure(NO_MICROPHONE.format(error)) from error
