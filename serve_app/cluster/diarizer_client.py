"""The ingress's client of a diarizer's replicas. Every call has all that it needs, so any replica can answer it."""

import asyncio
import math
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from serve_app.cluster.calls import CHECK_S, MAX_BY_VALUE_BYTES, DeploymentHandle, answer, require_loaded, retried
from serve_app.cluster.status import ReplicaStatus
from serve_app.diarization.chunks import Chunk
from serve_app.diarization.protocol import DiarizerShape, Probabilities
from serve_app.errors import ModelUnavailable
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
            shape: DiarizerShape = await self._waited(lambda: self._replicas.shape.remote(), self._wait_s)
            return shape

        return await retried(attempt, f"a call of {self._name}")

    async def step(self, chunk: Chunk, state: bytes | None) -> tuple[Probabilities, bytes]:
        """See Diarizer.step."""
        is_small = chunk.samples.nbytes + len(state or b"") <= MAX_BY_VALUE_BYTES
        replicas = self._replicas if is_small else self._replicas.options(_by_reference=True)

        async def attempt(number: int) -> tuple[Probabilities, bytes]:
            if number:
                self._recorder.record(catalogue.DIARIZER_STEPS_RETRIED, 1, self._name)
            found: tuple[Probabilities, bytes] = await self._waited(lambda: replicas.step.remote(*chunk, state), self._wait_s)
            return found

        return await retried(attempt, f"a step of {self._name}")

    async def _waited(self, call: Callable[[], Any], wait_s: float) -> Any:
        """The answer to a call. Raises ModelUnavailable where no replica is loaded after `wait_s`, and one of REPLICA_LOST or
        another SpeechError."""
        calling = asyncio.ensure_future(answer(call(), self._name))
        now_s = asyncio.get_running_loop().time
        loaded_by_s = now_s() + wait_s
        try:
            while not (await asyncio.wait([calling], timeout=max(0.0, min(CHECK_S, loaded_by_s - now_s()))))[0]:
                if now_s() >= loaded_by_s:
                    require_loaded(self._statuses(), f"diarizer `{self._name}`", PARAM)
                    loaded_by_s = math.inf
                if not await self._is_deployed():
                    raise ModelUnavailable(f"The diarizer `{self._name}` was removed from the server.", param=PARAM)
            return calling.result()
        finally:
            calling.cancel()
