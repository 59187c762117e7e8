"""A diarizer without replicas, which tests control."""

import asyncio

from serve_app.diarization.chunks import Chunk
from serve_app.diarization.protocol import DiarizerEngine, DiarizerShape, Probabilities
from serve_app.diarization.simulated import SimulatedDiarizer
from serve_app.errors import SpeechError
from serve_app.settings import SimulationSettings


class LocalDiarizer:
    """A `diarizing.Diarizer` on an engine in this process.

    `unavailable` is raised by `shape`, `failures` by the steps of these numbers; `hold` delays steps while it is cleared.
    `chunks` records the steps, `recordings` counts the calls of `shape`.
    """

    def __init__(self, engine: DiarizerEngine | None = None) -> None:
        self._engine = engine or SimulatedDiarizer(SimulationSettings(step_s=0, seconds_per_audio_s=0))
        self.unavailable: SpeechError | None = None
        self.failures: dict[int, SpeechError] = {}
        self.hold = asyncio.Event()
        self.hold.set()
        self.chunks: list[Chunk] = []
        self.recordings = 0

    async def shape(self) -> DiarizerShape:
        self.recordings += 1
        if self.unavailable is not None:
            raise self.unavailable
        return self._engine.shape

    async def step(self, chunk: Chunk, state: bytes | None) -> tuple[Probabilities, bytes]:
        self.chunks.append(chunk)
        await self.hold.wait()
        if (failure := self.failures.get(len(self.chunks) - 1)) is not None:
            raise failure
        return self._engine.step(*chunk, state)
