"""The Serve deployments behind the ingress, and the client side of calling them.

`ModelReplica` holds one loaded model and batches the windows of all requests. `ModelClient` sends windows from the ingress and
explains failures.
"""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import ray
from ray import serve
from ray.exceptions import NodeDiedError, ObjectLostError, OutOfMemoryError, RayActorError, RayTaskError, WorkerCrashedError
from ray.serve.exceptions import DeploymentUnavailableError
from ray.serve.handle import DeploymentHandle as _DeploymentHandle

from serve_app.batching import Batcher, BatchLimits
from serve_app.board import HEARTBEAT_S
from serve_app.engine import Engine, ParakeetEngine
from serve_app.errors import EngineBroken, EngineError, ModelUnavailable, SpeechError
from serve_app.model_files import DownloadProgress, find_model_file
from serve_app.service import ModelState, ReplicaStatus
from serve_app.settings import BatchingSettings, ModelSettings, Settings
from serve_app.simulation import SimulatedEngine
from serve_app.transcript import SAMPLE_RATE, Job, Keywords, Lane, Samples, Token, Window

log = logging.getLogger("ray.serve")

LOAD_AGAIN_AFTER_S = 3.0
"""A failed load is told to every request that comes within this time; a later request tries again."""

MOST_TRIES = 4
"""A window is sent this many times at most when replicas are lost under it."""

RETRY_DELAY_S = 0.5
"""Before the second try; twice as long before each further one."""

LOST = (
    RayActorError,
    WorkerCrashedError,
    NodeDiedError,
    OutOfMemoryError,
    ObjectLostError,
    DeploymentUnavailableError,
    EngineBroken,
)
"""How a call ends when its replica, or the machine of it, is gone. Ray's OutOfMemoryError is a process that Ray has ended."""

LAST_WORDS_S = 0.5
"""What a replica with a broken engine gets to send the failures before it ends."""

GPU_BATCH_AUDIO_S = 600.0
CPU_BATCH_AUDIO_S = 60.0
"""Padded audio in a batch where the settings leave it open."""

BATCHES_AHEAD = 2
LEAST_WINDOWS = 4
"""What keeps the replicas busy: a batch at work and one that waits on each, and never fewer windows than this."""

DeploymentHandle: TypeAlias = _DeploymentHandle[Any]
BatchItem: TypeAlias = tuple[Samples, Keywords]


def batch_audio_s(batching: BatchingSettings, *, on_gpu: bool) -> float:
    """Most padded audio in a batch, seconds."""
    return batching.max_batch_audio_s or (GPU_BATCH_AUDIO_S if on_gpu else CPU_BATCH_AUDIO_S)


def batch_windows(batching: BatchingSettings, window_s: float, *, on_gpu: bool) -> int:
    """Most windows of full length in a batch."""
    return max(1, min(batching.max_batch_items, int(batch_audio_s(batching, on_gpu=on_gpu) / window_s)))


class ModelReplica:
    """One copy of one model. All use of the engine, loading included, is on a single thread that owns it."""

    async def __init__(  # type: ignore[misc]  # Serve awaits constructors
        self, model: ModelSettings, batching: BatchingSettings, window_s: float, board: DeploymentHandle
    ) -> None:
        self._model = model
        self._batching = batching
        self._window_samples = round(window_s * SAMPLE_RATE)
        self._board = board
        self._engine_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._engine: Engine | None = None
        self._batcher: Batcher[BatchItem, list[Token]] | None = None
        self._status = ReplicaStatus(replica_id=serve.get_replica_context().replica_id.unique_id, state="starting")
        self._failed_at_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._news = asyncio.Event()
        self._heart = asyncio.create_task(self._beat())
        self._loading: asyncio.Task[None] = asyncio.create_task(self._load())
        # Serve sends requests here only after the constructor, so a replica that joins others takes work once it is loaded. A
        # failed load must not fail the constructor: Serve would retry it blindly and nobody would be told the reason.
        await asyncio.wait([self._loading])

    async def transcribe(self, samples: Samples, lane: int, job: Job, is_alone: bool) -> list[Token]:
        """Tokens of one window, int16 [samples], with times from its start. Raises ModelUnavailable or EngineError."""
        batcher = await self._ready_batcher()
        return await batcher.submit((samples, job.keywords), len(samples), Lane(lane), job.job_id, is_alone=is_alone)

    async def _ready_batcher(self) -> "Batcher[BatchItem, list[Token]]":
        if self._loading.done() and self._batcher is None and time.monotonic() - self._failed_at_s > LOAD_AGAIN_AFTER_S:
            self._loading = asyncio.create_task(self._load())
        # Shielded: a client that leaves must not stop a load that others wait for.
        await asyncio.shield(self._loading)
        if self._batcher is None:
            raise ModelUnavailable(f"The model `{self._model.name}` cannot be had: {self._status.detail}", param="model")
        return self._batcher

    async def _load(self) -> None:
        self._set_state("starting")
        try:
            self._engine = await self._loop.run_in_executor(self._engine_thread, self._load_engine)
        except Exception as error:
            if isinstance(error, EngineBroken):
                self._end_process(error)
            self._failed_at_s = time.monotonic()
            reason = error.message if isinstance(error, SpeechError) else f"{type(error).__name__}: {error}"
            log.error("model %s could not be loaded: %s", self._model.name, reason, exc_info=not isinstance(error, SpeechError))
            self._set_state("failed", reason)
            return
        info = self._engine.info
        self._batcher = Batcher(self._process, self._batch_limits())
        self._status = replace(self._status, device=info.device, precision=info.precision, decoder=info.decoder)
        self._set_state("ready")

    def _load_engine(self) -> Engine:
        """Runs on the engine thread."""
        model = self._model
        if model.source == "simulated":
            return SimulatedEngine(model.simulation)
        # Ray hides no GPU from a replica that has reserved none.
        device = model.device if model.device != "auto" else "cuda" if ray.get_gpu_ids() else "cpu"
        path = find_model_file(model.source, timeout_s=model.load_timeout_s, on_progress=self._note_download)
        self._set_state("loading")
        engine = ParakeetEngine.load(
            path,
            device=device,
            precision=model.precision,
            cpu_threads=model.cpu_threads,
            keyword_weight=model.keyword_weight,
        )
        if engine.info.device == "cuda":
            items = batch_windows(self._batching, self._window_samples / SAMPLE_RATE, on_gpu=True)
            engine.warm_up(items, self._window_samples, most_items=self._batching.max_batch_items)
        return engine

    async def _process(self, batch: list[BatchItem]) -> list[list[Token]]:
        assert self._engine is not None
        windows, keywords = zip(*batch, strict=True)
        results = self._loop.run_in_executor(self._engine_thread, self._engine.transcribe, windows, keywords)
        try:
            return await asyncio.wait_for(results, self._batching.batch_timeout_s)
        except TimeoutError:
            hung = EngineBroken(f"A batch did not end within {self._batching.batch_timeout_s:.0f} s.")
            self._end_process(hung)
            raise hung from None
        except EngineBroken as error:
            self._end_process(error)
            raise

    def _end_process(self, error: EngineBroken) -> None:
        """Serve replaces a dead replica at once, but one that only says it is unwell after half a minute, in which it would go on
        drawing requests by failing them fast."""
        log.error("model %s: %s; this replica ends", self._model.name, error.message)
        self._loop.call_later(LAST_WORDS_S, os._exit, 1)

    def _batch_limits(self) -> BatchLimits:
        assert self._engine is not None
        max_samples = round(batch_audio_s(self._batching, on_gpu=self._engine.info.device != "cpu") * SAMPLE_RATE)
        return BatchLimits(max_samples, self._batching.max_batch_items, self._batching.ageing_s)

    def _note_download(self, progress: DownloadProgress) -> None:
        done_mb = progress.done_bytes / 1e6
        total = "" if progress.total_bytes is None else f" of {progress.total_bytes / 1e6:.0f}"
        self._set_state("downloading", f"downloaded {done_mb:.0f}{total} MB")
        log.info("model %s: %s", self._model.name, self._status.detail)

    def _set_state(self, state: ModelState, detail: str = "") -> None:
        """Called from the event loop and from the engine thread."""
        self._status = replace(self._status, state=state, detail=detail)
        self._loop.call_soon_threadsafe(self._news.set)

    async def _beat(self) -> None:
        """Tell the board how this replica fares, for as long as it lives."""
        while True:
            status = self._status
            if self._batcher is not None:
                stats = self._batcher.stats
                status = replace(
                    status,
                    batches=stats.batches,
                    windows=stats.items,
                    largest_batch=stats.largest_batch,
                    queued=self._batcher.queued,
                )
            try:
                await self._board.report_model.remote(self._model.name, status)
            except Exception as error:
                log.warning("the board cannot be reached: %s", error)
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._news.wait(), HEARTBEAT_S)
            self._news.clear()


@dataclass(frozen=True, slots=True)
class ModelClient:
    """Sends the windows of one model to its replicas, from within the ingress. `statuses` gives what the replicas said last."""

    model: ModelSettings
    settings: Settings
    replicas: DeploymentHandle
    statuses: Callable[[], Sequence[ReplicaStatus]]

    def windows_wanted(self, window_s: float) -> int:
        """Windows of that length that keep the loaded replicas busy."""
        batching = self.settings.batching
        loaded = [replica for replica in self.statuses() if replica.state == "ready"]
        per_batch = (batch_windows(batching, window_s, on_gpu=replica.device != "cpu") for replica in loaded)
        return max(LEAST_WINDOWS, BATCHES_AHEAD * sum(per_batch))

    async def recognise(self, window: Window, lane: Lane, job: Job) -> list[Token]:
        """Tokens of a window; sent again, a few times, when the replica that had it is lost. Raises a SpeechError."""
        for attempt in range(MOST_TRIES):
            try:
                if attempt == 0:
                    return await self._send(window, lane, job)
                # What is sent again holds up the merge of all that came after it. And it may be what broke the replica, so that
                # it must not take others with it again.
                return await self._send(window, min(lane, Lane.INTERACTIVE), job, is_alone=True)
            except LOST as error:
                log.warning("window %d of %s was lost with its replica (%s)", window.index, self.model.name, type(error).__name__)
            if attempt < MOST_TRIES - 1:
                # Time for the router to learn that the replica is gone.
                await asyncio.sleep(RETRY_DELAY_S * 2**attempt)
        raise EngineBroken("The replicas that worked on this were lost one after the other; try again later.")

    async def _send(self, window: Window, lane: Lane, job: Job, *, is_alone: bool = False) -> list[Token]:
        answer = asyncio.ensure_future(self._call(window, lane, job, is_alone))
        try:
            # A job that has begun waits as long as its request may take: its replica may have to be loaded anew.
            if window.index == 0 and not is_alone:
                done, _ = await asyncio.wait([answer], timeout=self.settings.limits.model_wait_s)
                if not done:
                    self._require_loaded()
            return await answer
        finally:
            answer.cancel()

    async def _call(self, window: Window, lane: Lane, job: Job, is_alone: bool) -> list[Token]:
        response = self.replicas.transcribe.remote(window.samples, int(lane), job, is_alone)
        try:
            tokens: list[Token] = await response
        except asyncio.CancelledError:
            # Leaving off waiting alone would not take the window out of the replica's queue.
            response.cancel()  # type: ignore[no-untyped-call]
            raise
        except RayTaskError as error:
            if isinstance(error.cause, SpeechError):
                raise error.cause from None
            raise EngineError(f"Recognition failed: {type(error.cause).__name__}: {error.cause}") from error
        return tokens

    def _require_loaded(self) -> None:
        replicas = self.statuses()
        if any(replica.state == "ready" for replica in replicas):
            return
        waiting_for = "it is still being loaded" if replicas else "waiting for a free CPU or GPU"
        reason = next((replica.detail for replica in replicas if replica.detail), waiting_for)
        raise ModelUnavailable(f"The model `{self.model.name}` is not loaded yet ({reason}). Try again later.", param="model")
