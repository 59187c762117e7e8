"""The service of the API for tests: the real pipeline and decoder, with a simulated or a real engine, and without Ray."""

import asyncio
import functools
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import numpy as np
import uvicorn
from fastapi.testclient import TestClient
from httpx2 import Response

from serve_app.cluster.status import ReplicaStatus
from serve_app.decoders.pool import DecoderPool
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.engine.simulated import SimulatedEngine
from serve_app.live.endpointing import VAD_FRAME_SAMPLES, Endpointer, Endpointing, VadEvent
from serve_app.service import SpeechService
from serve_app.settings import LimitSettings, ModelSettings, Settings, SimulationSettings
from serve_app.transcript import Token
from serve_app.window import Job, Lane, Samples, Window
from testing import media
from testing.local_diarizer import LocalDiarizer
from testing.metrics import MemoryRecorder

SETTINGS = Settings(
    models=(
        ModelSettings(name="first", source="simulated", min_replicas=1),
        ModelSettings(name="second", source="nvidia/second", languages=("de",)),
    ),
    limits=LimitSettings(max_upload_bytes=1_000_000),
)
NOISE = media.wav(np.random.default_rng(0).normal(0, 0.1, 3 * 16_000))
"""A WAV file of 3 s."""

LONG = media.wav(np.random.default_rng(1).normal(0, 0.1, 8_000 * 126).astype(np.float32), 8_000)
"""One of 126 s, five windows."""


class LevelVad:
    """A VAD by level: a frame whose peak exceeds 300 counts as speech."""

    def __init__(self, endpointing: Endpointing) -> None:
        self._endpointer = Endpointer(endpointing)
        self._rest = np.zeros(0, np.int16)

    @property
    def possible_speech_until(self) -> int:
        return self._endpointer.possible_speech_until

    async def push(self, block: Samples) -> list[VadEvent]:
        samples = np.concatenate([self._rest, block])
        whole = len(samples) // VAD_FRAME_SAMPLES * VAD_FRAME_SAMPLES
        self._rest = samples[whole:]
        return self._endpointer.push(
            [float(np.abs(frame).max() > 300) for frame in samples[:whole].reshape(-1, VAD_FRAME_SAMPLES)]
        )


@functools.cache
def decoders() -> DecoderPool:
    """The decoder processes of all tests of this process; they end with it."""
    return DecoderPool(1)


class FakeService:
    """A SpeechService that tests control.

    `failure` is raised for every window, `hold` delays windows while it is cleared, `replicas` is the status of the replicas.
    `windows`, `lanes` and `jobs` record the calls of `recognise`, `metrics` the metrics. All diarizers are `diarizer`.
    """

    def __init__(self, **settings: Any) -> None:
        """`settings` replace those of SETTINGS."""
        self.failure: Exception | None = None
        self.loop: asyncio.AbstractEventLoop | None = None
        self.replicas: dict[str, tuple[ReplicaStatus, ...]] = {}
        self.lanes: list[Lane] = []
        self._engine = SimulatedEngine(SimulationSettings(step_s=0, seconds_per_audio_s=0))
        self.windows: list[Window] = []
        self.jobs: list[Job] = []
        self.hold = asyncio.Event()
        self.hold.set()
        self.metrics = MemoryRecorder()
        self.diarizer = LocalDiarizer()
        with_updates = SETTINGS.model_copy(update=settings)
        self.service = SpeechService(
            with_updates,
            {model.name: self for model in SETTINGS.models},
            self.statuses,
            LevelVad,
            decoders(),
            self.metrics,
            diarizers={each.name: self.diarizer for each in with_updates.diarizers},
        )

    async def recognise(self, window: Window, lane: Lane, job: Job) -> list[Token]:
        self.lanes.append(lane)
        self.windows.append(window)
        self.jobs.append(job)
        await self.hold.wait()
        if self.failure is not None:
            raise self.failure
        return self._engine.transcribe([window.samples])[0]

    def target_windows_in_flight(self, window_s: float) -> int:
        return 4

    def refuses_keywords(self) -> bool:
        return any(not replica.takes_keywords for replicas in self.replicas.values() for replica in replicas)

    async def statuses(self) -> Mapping[str, tuple[ReplicaStatus, ...]]:
        self.loop = asyncio.get_running_loop()
        return self.replicas


class EngineService(FakeService):
    """A FakeService that recognises with a real engine."""

    def __init__(self, engine: ParakeetEngine, **settings: Any) -> None:
        super().__init__(**{"limits": LimitSettings()} | settings)
        self.engine = engine

    async def recognise(self, window: Window, lane: Lane, job: Job) -> list[Token]:
        await super().recognise(window, lane, job)
        return self.engine.transcribe([window.samples], [job.keywords])[0]


@contextmanager
def serving(app: Any) -> Iterator[str]:
    """Run an ASGI application in a thread; yields its address."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="critical", ws="websockets-sansio", lifespan="off"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            thread.join(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


def post(client: TestClient, data: Any = NOISE, **fields: Any) -> Response:
    return client.post("/v1/audio/transcriptions", files={"file": ("x.wav", data)}, data=fields)


def assert_error(response: Response, status: int, code: str, param: str | None = None) -> str:
    """Assert that the body is OpenAI's error object and nothing else; returns its message."""
    assert response.status_code == status, response.text
    error = response.json()["error"]
    assert set(response.json()) == {"error"}
    assert set(error) == {"message", "type", "param", "code"}
    assert (error["code"], error["param"]) == (code, param)
    assert error["type"] == (
        "server_error" if status >= 500 else "rate_limit_error" if status == 429 else "invalid_request_error"
    )
    return str(error["message"])
