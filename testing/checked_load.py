"""Long files and live streams that keep a server of simulated models busy, while a test does something to the server.

The words of the simulated engine depend on the audio alone, so a word that is lost, doubled or misplaced shows. A client that
fails does what a good one does: it waits a moment and sends a file again, or goes on with a stream after its last final word.
"""

import asyncio
import json
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any, Literal

import httpx2
import numpy as np
import websockets

from benchmarks.speech import hoarse, spoken_digits
from serve_app.api.websocket import PATH
from serve_app.engine.simulated import SimulatedEngine
from serve_app.settings import SimulationSettings
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples
from testing import media
from testing.digit_strings import load_bank
from testing.paths import DIGITS

MAX_ATTEMPTS = 20
RETRY_S = 1.0
"""Delay before a client tries again, seconds."""

MESSAGE_S = 0.24
"""Audio per message of a stream, seconds: three frames."""

CLOSING_S = 8 * MESSAGE_S
"""A stream ends with so much clear speech, seconds. The VAD takes some hoarse digits for noise, of which the server leaves out
less than half a second where the stream ends after it."""

FRAME_S = FRAME_SAMPLES / SAMPLE_RATE
WAIT_S = 200.0
"""Everything that is waited for takes less, seconds."""

Words = Counter[tuple[str, int]]
"""Words and the frame in which each begins, with their numbers."""


@dataclass(slots=True)
class Client:
    """One file or stream, and how it fares."""

    kind: Literal["file", "stream"]
    samples: Samples
    """All of a file; a stream repeats them without end."""
    expected: Words
    received: Words = field(default_factory=Counter)
    saw: list[str] = field(default_factory=list)
    """The failures that it met, in order."""
    failed_at_s: list[float] = field(default_factory=list)
    """When it met them, of the monotonic clock."""
    moments: list[tuple[float, float]] = field(default_factory=list)
    """When progress was seen, and how far it was, seconds of audio."""
    is_done: bool = False
    end: int | None = None
    """Of a stream, once it was asked to end: how long it is, samples."""
    closing: Samples = field(default_factory=lambda: np.zeros(0, np.int16))
    """The last samples of a stream."""

    @property
    def position_s(self) -> float:
        return self.moments[-1][1] if self.moments else 0.0

    @property
    def lost(self) -> int:
        return (self.expected - self.received).total()

    @property
    def doubled(self) -> int:
        return (self.received - self.expected).total()

    def spoken(self, start: int, stop: int) -> Samples:
        """A piece of a stream."""
        last = stop if self.end is None else self.end - len(self.closing)
        repeated = np.take(self.samples, np.arange(start, max(start, min(stop, last))), mode="wrap")
        return np.concatenate([repeated, self.closing[max(0, start - last) : max(0, stop - last)]])

    def note(self, position_s: float) -> None:
        if position_s > self.position_s or not self.moments:
            self.moments.append((time.monotonic(), position_s))

    def failed(self, what: str) -> None:
        self.saw.append(what)
        self.failed_at_s.append(time.monotonic())

    def longest_pause_s(self, since_s: float) -> float:
        """Without progress, seconds, from a time of the monotonic clock on."""
        times = [at_s for at_s, _ in self.moments]
        return max((after - max(before, since_s) for before, after in pairwise(times) if after > since_s), default=0.0)


class CheckedLoad:
    """A context manager: the clients run in a thread while it is open, and leaving it waits for all of them, or
    stops them if something has failed.

    Streams speak at the pace of speech until `finish`, and then end. `urls`: base addresses; a client that fails goes to the
    next. With `retries=False` a failure ends it.
    """

    def __init__(self, urls: Sequence[str], model: str, files: int, file_s: float, streams: int, *, retries: bool = True) -> None:
        self._urls = list(urls)
        self._model = model
        self._retries = retries
        self._ends = threading.Event()
        self._stop: Callable[[], object] | None = None
        rng = np.random.default_rng(11)
        noises = [rng.integers(-8000, 8000, round(file_s * SAMPLE_RATE), dtype=np.int16) for _ in range(files)]
        bank = load_bank(DIGITS)
        speeches = [hoarse(spoken_digits(bank, 60.0, seed), seed) for seed in range(streams)]
        self.files = [Client("file", samples, words_of(samples)) for samples in noises]
        closing = spoken_digits(bank, 60.0, 0)[: round(CLOSING_S * SAMPLE_RATE)]
        self.streams = [Client("stream", samples, Counter(), closing=closing) for samples in speeches]
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()), name="checked-load")

    @property
    def clients(self) -> list[Client]:
        return self.files + self.streams

    def __enter__(self) -> "CheckedLoad":
        self._thread.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        self.finish()
        if kind is not None and self._stop is not None:
            self._stop()
        self._thread.join(WAIT_S)
        assert not self._thread.is_alive(), f"clients that never ended: {[c for c in self.clients if not c.is_done]}"

    def finish(self) -> None:
        """Have the streams end."""
        self._ends.set()

    def wait_until_begun(self) -> None:
        """Wait until every client has seen some progress."""
        self.wait_until(lambda: all(client.moments or client.is_done for client in self.clients))

    def wait_until_done(self) -> None:
        """Wait until every client has ended."""
        self.wait_until(lambda: all(client.is_done for client in self.clients))

    def wait_until(self, holds: Callable[[], bool]) -> None:
        until_s = time.monotonic() + WAIT_S
        while not holds():
            assert time.monotonic() < until_s, f"it did not happen: {[(c.kind, c.moments[-1:], c.saw) for c in self.clients]}"
            time.sleep(0.05)

    async def _run(self) -> None:
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._stop = lambda: loop.call_soon_threadsafe(task.cancel)
        with suppress(asyncio.CancelledError):
            await self._run_all()

    async def _run_all(self) -> None:
        async with httpx2.AsyncClient(timeout=None) as http, asyncio.TaskGroup() as group:
            for client in self.streams:
                group.create_task(self._repeat(client, self._send_stream))
            # A stream has its first words after some seconds; the files, which have theirs at once, would be well ahead.
            while not all(client.moments or client.is_done for client in self.streams):  # noqa: ASYNC110
                await asyncio.sleep(0.1)
            for client in self.files:
                group.create_task(self._repeat(client, lambda c, url: self._send_file(http, c, url)))

    async def _repeat(self, client: Client, attempt: Callable[[Client, str], Any]) -> None:
        try:
            for number in range(MAX_ATTEMPTS if self._retries else 1):
                try:
                    failure = await attempt(client, self._urls[number % len(self._urls)])
                except websockets.InvalidStatus as refused:
                    failure = str(refused.response.status_code)
                except (httpx2.TransportError, OSError, websockets.WebSocketException):
                    failure = "connection lost"
                if failure is None:
                    return
                client.failed(failure)
                await asyncio.sleep(RETRY_S)
        finally:
            client.is_done = True

    async def _send_file(self, http: httpx2.AsyncClient, client: Client, url: str) -> str | None:
        """The failure, if there is one."""
        fields = {"model": self._model, "response_format": "verbose_json", "timestamp_granularities[]": "word"}
        fields |= {"stream": "true", "include[]": "progress"}
        upload = {"file": ("audio.wav", media.wav(client.samples))}
        async with http.stream("POST", f"{url}/v1/audio/transcriptions", data=fields, files=upload) as response:
            if response.status_code != 200:
                await response.aread()
                return f"{response.status_code} {_code(response.text)}"
            async for line in response.aiter_lines():
                if not line.startswith("data: "):
                    continue
                event = json.loads(line.removeprefix("data: "))
                if "error" in event:
                    return f"error event {event['error']['code']}"
                if event["type"] == "transcript.progress":
                    client.note(event["audio_s"])
                elif event["type"] == "transcript.text.done":
                    client.received = as_words(event["content"]["words"], 0)
                    return None
        return "event stream ended early"

    async def _send_stream(self, client: Client, url: str) -> str | None:
        """The same. It begins after the last word that was final."""
        first_frame = max((frame + 1 for _, frame in client.received), default=0)
        if client.end is not None and client.end <= first_frame * FRAME_SAMPLES:
            client.expected = words_of(client.spoken(0, client.end))
            return None
        address = url.replace("http", "ws") + PATH
        async with websockets.connect(address, max_size=None, compression=None, ping_interval=None) as socket:
            await socket.send(json.dumps({"encoding": "pcm_s16le", "interim_results": True, "model": self._model}))
            speaking = asyncio.create_task(self._speak(client, socket, first_frame))
            failure = ""
            with suppress(websockets.ConnectionClosed):
                async for data in socket:
                    message = json.loads(data)
                    if message["type"] == "error":
                        failure = f"error {message.get('code')}, "
                    words = message.get("words", [])
                    if words:
                        client.note(first_frame * FRAME_S + words[-1]["end"])
                    if message["type"] == "segment":
                        client.received += as_words(words, first_frame)
            if client.end is not None and not failure and socket.close_code == 1000:
                client.expected = words_of(client.spoken(0, client.end))
                return None
            speaking.cancel()
            return f"{failure}close {socket.close_code}"

    async def _speak(self, client: Client, socket: Any, first_frame: int) -> None:
        """Speak until the end is asked for."""
        step, at = round(MESSAGE_S * SAMPLE_RATE), first_frame * FRAME_SAMPLES
        began_s = client.moments[0][0] - client.moments[0][1] if client.moments else time.monotonic()
        with suppress(websockets.ConnectionClosed):
            while client.end is None or at < client.end:
                if client.end is None and self._ends.is_set():
                    client.end = at + len(client.closing)
                # What was said while there was no connection is sent at once.
                await asyncio.sleep(max(0.0, began_s + (at + step) / SAMPLE_RATE - time.monotonic()))
                await socket.send(client.spoken(at, at + step).tobytes())
                at += step
            await socket.send("END")


def words_of(samples: Samples) -> Words:
    """The words that the simulated engine recognises in int16 [samples]."""
    tokens = SimulatedEngine(SimulationSettings(step_s=0, seconds_per_audio_s=0)).transcribe([samples])[0]
    return Counter((token.piece.strip("▁"), token.start_sample // FRAME_SAMPLES) for token in tokens)


def as_words(words: Sequence[dict[str, Any]], first_frame: int) -> Words:
    return Counter((word["word"], first_frame + round(word["start"] / FRAME_S)) for word in words)


def _code(body: str) -> str:
    try:
        return str(json.loads(body)["error"]["code"])
    except (ValueError, KeyError, TypeError):
        return body[:60]
