"""The ingress's client of a model's replicas: sends windows, retries those lost with a replica, explains failures."""

import asyncio
import contextlib
import logging
import math
import random
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeAlias

from grpc import StatusCode
from grpc.aio import AioRpcError
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle as _DeploymentHandle

from serve_app.cluster.live_calls import LiveCalls, LiveWindow, Outcome
from serve_app.cluster.status import ReplicaStatus
from serve_app.engine.batch_policy import expected_batch_audio_s, max_batch_windows
from serve_app.errors import UNFORESEEN, EngineBroken, EngineError, EngineOutOfMemory, ModelUnavailable, SpeechError
from serve_app.observe import catalogue
from serve_app.observe.recorder import NO_RECORDER, Recorder
from serve_app.settings import ModelSettings, Settings
from serve_app.transcript import Token, TokenColumns
from serve_app.window import SAMPLE_RATE, Job, Lane, Window

log = logging.getLogger("ray.serve")

MAX_ATTEMPTS = 4
"""A window whose replicas are lost is sent at most this many times."""

RETRY_DELAY_S = 0.5
"""Delay before the second attempt, seconds; doubled before each further one."""

REPLICA_LOST = (
    RayActorError,
    WorkerCrashedError,
    NodeDiedError,
    OutOfMemoryError,
    ObjectLostError,
    DeploymentUnavailableError,
    AioRpcError,
    EngineBroken,
)
"""The replica or its node is lost, or its engine is broken: the window is sent again. OutOfMemoryError is not CUDA's but Ray's,
for a process that it killed. A connection that breaks is most often a RayActorError, else an AioRpcError."""

LOST_CODES = (StatusCode.UNAVAILABLE, StatusCode.CANCELLED, StatusCode.INTERNAL)
"""Status codes of an AioRpcError that a lost connection has."""

CHECK_S = 0.5
"""How often a window that waits checks whether its model is still deployed, seconds."""

MAX_BY_VALUE_BYTES = 4_000_000
"""Maximum audio of a window that is sent by value, bytes (125 s). A message of Serve's may have 4 MiB."""

BATCHES_PER_REPLICA = 2
"""Batches in flight per replica that keep it busy: one running, one waiting."""

MIN_WINDOWS_IN_FLIGHT = 4
"""Minimum windows in flight per file, even while no replica is loaded."""

LOAD_FAILED = "it could not be loaded; `/ready` and the server's log say why"
"""What a client is told of a model that is not there."""

DeploymentHandle: TypeAlias = _DeploymentHandle[Any]


def by_value(replicas: DeploymentHandle) -> DeploymentHandle:
    """A handle whose calls go straight to the replica, by gRPC, and not through Ray's tasks and object store."""
    return replicas.options(_by_reference=False, request_serialization="pickle", response_serialization="pickle")


class ModelClient:
    """One per model and ingress."""

    def __init__(
        self,
        model: ModelSettings,
        settings: Settings,
        replicas: DeploymentHandle,
        statuses: Callable[[], Sequence[ReplicaStatus]],
        is_deployed: Callable[[], Awaitable[bool]],
        recorder: Recorder = NO_RECORDER,
    ) -> None:
        """`replicas`: see `by_value`. `statuses` returns the last known statuses of the model's replicas; `is_deployed` whether
        the model is part of the running application."""
        self.model = model
        self.settings = settings
        self.replicas = replicas
        self.statuses = statuses
        self.is_deployed = is_deployed
        self.recorder = recorder
        self._refuses_keywords = False
        for metric in (catalogue.WINDOWS_RETRIED, catalogue.GAPS_REDECODED):
            recorder.record(metric, 0, model.name)
        batching = settings.batching
        max_samples = min(round(expected_batch_audio_s(batching, on_gpu=False) * SAMPLE_RATE), MAX_BY_VALUE_BYTES // 2)
        self._live_calls = LiveCalls(self._call_together, batching.max_batch_items, max_samples)

    def target_windows_in_flight(self, window_s: float) -> int:
        """Windows of `window_s` seconds that keep the loaded replicas busy."""
        loaded = self._loaded()
        per_batch = (max_batch_windows(self.settings.batching, window_s, replica.max_batch_audio_s) for replica in loaded)
        return max(MIN_WINDOWS_IN_FLIGHT, BATCHES_PER_REPLICA * sum(per_batch))

    def _loaded(self) -> list[ReplicaStatus]:
        return [replica for replica in self.statuses() if replica.state == "ready"]

    def refuses_keywords(self) -> bool:
        """Whether a replica has reported that the model takes no keywords. That holds when the replica is gone, too."""
        self._refuses_keywords |= any(not replica.takes_keywords for replica in self.statuses())
        return self._refuses_keywords

    async def recognise(self, window: Window, lane: Lane, job: Job) -> list[Token]:
        """Tokens of a window, retried when its replica is lost, and once when its recognition fails. Raises SpeechError."""
        has_failed = False
        for attempt in range(MAX_ATTEMPTS):
            try:
                if attempt == 0:
                    return await self._send(window, lane, job)
                # The merge of all later windows waits for a retry, so it is urgent. This window may also have crashed the
                # replica, so it gets a batch of its own and cannot fail others.
                self.recorder.record(catalogue.WINDOWS_RETRIED, 1, self.model.name)
                return await self._send(window, min(lane, Lane.INTERACTIVE), job, is_isolated=True)
            except REPLICA_LOST as error:
                log.warning("window %d of %s was lost with its replica (%s)", window.index, self.model.name, type(error).__name__)
            except EngineError as error:
                # A replica that fails at everything ends after a few batches. The second attempt comes after that.
                if has_failed or isinstance(error, EngineOutOfMemory):
                    raise
                has_failed = True
            if attempt < MAX_ATTEMPTS - 1:
                # Serve's router needs a moment to notice that the replica is gone.
                await asyncio.sleep(RETRY_DELAY_S * 2**attempt)
        raise EngineBroken("The model's replicas failed one after the other; try again later.")

    async def _send(self, window: Window, lane: Lane, job: Job, *, is_isolated: bool = False) -> list[Token]:
        answer = asyncio.ensure_future(self._call(window, lane, job, is_isolated))
        now_s = asyncio.get_running_loop().time
        # If no replica is ready `model_wait_s` after the first window was sent, the request fails. Later windows wait as long as
        # the request may take, since a replica may have to be loaded again.
        is_first = window.index == 0 and not is_isolated
        loaded_by_s = now_s() + self.settings.limits.model_wait_s if is_first else math.inf
        loaded = len(self._loaded())
        try:
            while not (await asyncio.wait([answer], timeout=max(0.0, min(CHECK_S, loaded_by_s - now_s()))))[0]:
                if now_s() >= loaded_by_s:
                    self._require_loaded()
                    loaded_by_s = math.inf
                # If the deployment is deleted, Serve's router keeps waiting for a replica of it, without a timeout.
                if not await self.is_deployed():
                    raise ModelUnavailable(f"The model `{self.model.name}` was removed from the server.", param="model")
                before, loaded = loaded, len(self._loaded())
                if 0 < before < loaded and random.random() < 1 - before / loaded and lane != Lane.LIVE and not is_isolated:
                    # A call stays with the replica that got it. The added replicas get their share of those that wait.
                    answer.cancel()
                    answer = asyncio.ensure_future(self._call(window, lane, job, is_isolated))
            return answer.result()
        finally:
            answer.cancel()

    async def _call(self, window: Window, lane: Lane, job: Job, is_isolated: bool) -> list[Token]:
        is_small = window.samples.nbytes <= MAX_BY_VALUE_BYTES
        if lane == Lane.LIVE and is_small and not is_isolated:
            return await self._live_calls.recognise(job, window.samples)
        replicas = self.replicas if is_small else self.replicas.options(_by_reference=True)
        columns: TokenColumns = await self._answer(replicas.transcribe.remote(int(lane), job, is_isolated, window.samples))
        return columns.tokens()

    async def _call_together(self, windows: Sequence[LiveWindow]) -> Sequence[Outcome]:
        outcomes: Sequence[TokenColumns | SpeechError] = await self._answer(self.replicas.transcribe_live.remote(windows))
        return [outcome if isinstance(outcome, SpeechError) else outcome.tokens() for outcome in outcomes]

    async def _answer(self, response: Any) -> Any:
        """The answer to a call. Raises one of REPLICA_LOST or another SpeechError."""
        try:
            return await response
        except asyncio.CancelledError:
            if (task := asyncio.current_task()) is not None and not task.cancelling():
                raise EngineBroken("The replica stopped before it was done.") from None
            # Cancelling the wait alone would leave the windows in the replica's queue.
            with contextlib.suppress(Exception):  # It has failed by now.
                response.cancel()
            raise
        except Exception as error:
            raise self._as_ours(error) from None

    def _as_ours(self, error: BaseException) -> BaseException:
        """What a client of the server may know of a failure in a replica."""
        cause: BaseException = error.cause if isinstance(error, RayTaskError) else error
        is_lost = isinstance(cause, REPLICA_LOST) and not (isinstance(cause, AioRpcError) and cause.code() not in LOST_CODES)
        if is_lost or isinstance(cause, SpeechError):
            return cause
        log.error("recognition by %s failed: %r", self.model.name, cause)
        return EngineError(UNFORESEEN)

    def _require_loaded(self) -> None:
        """Raises ModelUnavailable, with the load progress or the reason, unless a replica is ready."""
        replicas = self.statuses()
        if any(replica.state == "ready" for replica in replicas):
            return
        if replicas and all(replica.state == "failed" for replica in replicas):
            reason = LOAD_FAILED
        else:
            waiting_for = "it is still being loaded" if replicas else "waiting for a free CPU or GPU"
            reason = next((replica.detail for replica in replicas if replica.detail and replica.state != "failed"), waiting_for)
        raise ModelUnavailable(f"The model `{self.model.name}` is not loaded yet ({reason}). Try again later.", param="model")
