"""The ingress's client of a diarizer's replicas. Every call has all that it needs, so any replica can answer it."""

from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from serve_app.cluster.calls import MAX_BY_VALUE_BYTES, DeploymentHandle, answer, retried, waited
from serve_app.cluster.status import ReplicaStatus
from serve_app.diarization.chunks import Chunk
from serve_app.diarization.protocol import DiarizerShape, Probabilities
from serve_app.observe import catalogue
from serve_app.observe.recorder import NO_RECORDER, Recorder

PARAM = "diarize"
"""The field of a request that asks for a diarizer."""


class DiarizerClient:
    """One per diarizer and ingress. A `diarizing.Diarizer`."""

    def __init__(
        self,
        name: str,
        wait_s: float,
        replicas: DeploymentHandle,
        statuses: Callable[[], Sequence[ReplicaStatus]],
        is_deployed: Callable[[], Awaitable[bool]],
        recorder: Recorder = NO_RECORDER,
    ) -> None:
        """`wait_s`: how long a recording waits for a replica to load, seconds. `replicas`: see `calls.by_value`. `statuses`
        returns the last known statuses of the replicas; `is_deployed` whether the diarizer is part of the running application."""
        self._name = name
        self._wait_s = wait_s
        self._replicas = replicas
        self._statuses = statuses
        self._is_deployed = is_deployed
        self._recorder = recorder
        recorder.record(catalogue.DIARIZER_STEPS_RETRIED, 0, name)

    async def shape(self) -> DiarizerShape:
        """See Diarizer.shape. Loads the diarizer where no replica of it is running."""

        async def attempt(_number: int) -> DiarizerShape:
            shape: DiarizerShape = await self._waited(self._replicas.shape.remote)
            return shape

        return await retried(attempt, f"a call of {self._name}")

    async def step(self, chunk: Chunk, state: bytes | None) -> tuple[Probabilities, bytes]:
        """See Diarizer.step."""
        is_small = chunk.samples.nbytes + len(state or b"") <= MAX_BY_VALUE_BYTES
        replicas = self._replicas if is_small else self._replicas.options(_by_reference=True)

        async def attempt(number: int) -> tuple[Probabilities, bytes]:
            if number:
                self._recorder.record(catalogue.DIARIZER_STEPS_RETRIED, 1, self._name)
            found: tuple[Probabilities, bytes] = await self._waited(lambda: replicas.step.remote(*chunk, state))
            return found

        return await retried(attempt, f"a step of {self._name}")

    async def _waited(self, call: Callable[[], Any]) -> Any:
        """The answer to a call. Raises one of REPLICA_LOST or another SpeechError."""
        return await waited(
            lambda: answer(call(), self._name),
            load_s=self._wait_s,
            what=f"diarizer `{self._name}`",
            param=PARAM,
            statuses=self._statuses,
            is_deployed=self._is_deployed,
        )
