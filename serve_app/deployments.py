"""The Serve deployment of a model: `ModelReplica` holds one loaded copy and batches the windows of all requests."""

import asyncio
import contextlib
import logging
import os
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, TypeAlias, TypeVar

import ray
from ray import serve

from serve_app.cluster.autoscaling import published
from serve_app.cluster.demand import Demand
from serve_app.cluster.live_calls import LiveWindow
from serve_app.cluster.model_client import LOAD_FAILED, DeploymentHandle
from serve_app.cluster.status import HEARTBEAT_S, ModelState, ReplicaStatus
from serve_app.engine.batch_queue import MAX_FAILED_BATCHES, Batcher, BatchReport
from serve_app.engine.batch_sizes import measure_sizes
from serve_app.engine.decode_rate import DecodeRate
from serve_app.engine.model_files import DownloadProgress, find_model_file
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.engine.protocol import Engine
from serve_app.engine.simulated import SimulatedEngine
from serve_app.errors import UNFORESEEN, EngineBroken, EngineError, ModelUnavailable, RequestError, SpeechError
from serve_app.observe import catalogue, serve_log, tracers, window_trace
from serve_app.observe.job_meter import LANE_NAMES
from serve_app.observe.ray_recorder import RayRecorder
from serve_app.observe.recorder import NO_RECORDER, Recorder
from serve_app.observe.tracing import Tracer
from serve_app.observe.window_trace import WindowTrace
from serve_app.settings import BatchingSettings, LogFormat, ModelSettings, TracingSettings
from serve_app.transcript import TokenColumns
from serve_app.window import SAMPLE_RATE, Job, Keywords, Lane, Samples

log = logging.getLogger("ray.serve")

LOAD_RETRY_S = 3.0
"""Requests within this time of a failed load get its error, seconds; a later request tries to load again."""

EXIT_GRACE_S = 0.5
"""Time before a replica with a broken engine exits, seconds, so that its error replies are sent."""

BatchItem: TypeAlias = tuple[Samples, Keywords, WindowTrace | None]
Result = TypeVar("Result")


class ModelReplica:
    """One copy of one model. The engine is loaded and used on a single thread, which owns it; on a GPU, a second one prepares."""

    _recorder: Recorder = NO_RECORDER
    _tracer: Tracer | None = None
    _decode_rate: DecodeRate | None = None
    _demand: Demand | None = None
    """What the status registry answered; None while it does not."""

    async def __init__(  # type: ignore[misc]  # Serve awaits constructors
        self,
        model: ModelSettings,
        batching: BatchingSettings,
        max_window_s: float,
        status_registry: DeploymentHandle,
        tracing_settings: TracingSettings,
        log_format: LogFormat,
    ) -> None:
        """`max_window_s`: no window is longer, neither of a recording nor of a live stream, seconds."""
        log.addFilter(serve_log.without_traceback)
        serve_log.apply(log_format)
        self._recorder = RayRecorder()
        context = serve.get_replica_context()
        self._tracer = tracers.open_tracer(tracing_settings, context.deployment, context.replica_id.unique_id)
        self._model = model
        self._batching = batching
        self._max_window_samples = round(max_window_s * SAMPLE_RATE)
        self._status_registry = status_registry
        self._engine_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="engine")
        self._prepare_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self._engine: Engine | None = None
        self._batcher: Batcher[BatchItem, TokenColumns] | None = None
        self._status = ReplicaStatus(replica_id=context.replica_id.unique_id, state="starting")
        self._broken: EngineBroken | None = None
        """Why this process is about to exit."""
        self._failed_at_s = 0.0
        self._loop = asyncio.get_running_loop()
        self._status_changed = asyncio.Event()
        self._reporting = asyncio.create_task(self._report())
        self._loading: asyncio.Task[None] = asyncio.create_task(self._load())
        # Serve sends requests only once the constructor has returned, so a replica that is added under load takes work when it
        # is loaded. A failed load must not fail the constructor: Serve would retry it blindly and no client would get the reason.
        await asyncio.wait([self._loading])

    async def transcribe(self, lane: int, job: Job, is_isolated: bool, samples: Samples) -> TokenColumns:
        """Tokens of one window, int16 [samples], with times from its start. Raises ModelUnavailable, EngineError, or RequestError
        for keywords that the model cannot take."""
        batcher = await self._ready_batcher()
        if job.keywords and self._engine is not None and not self._engine.info.keywords:
            raise RequestError(
                f"The model `{self._model.name}` has a CTC decoder, which takes no phrases, in `keywords[]` or in `prompt`.",
                param="keywords[]",
            )
        with window_trace.traced(self._tracer, job) as trace:
            item = (samples, job.keywords, trace)
            return await batcher.submit(item, len(samples), Lane(lane), job.job_id, is_isolated=is_isolated)

    async def transcribe_live(self, windows: Sequence[LiveWindow]) -> list[TokenColumns | SpeechError]:
        """The same for windows of several live streams; their failures are part of the answer."""
        return await asyncio.gather(*(self._outcome(*window) for window in windows))

    async def _outcome(self, job: Job, samples: Samples, request_id: str) -> TokenColumns | SpeechError:
        try:
            return await self.transcribe(Lane.LIVE, job, False, samples)
        except SpeechError as error:
            return error
        except Exception:
            # The call, for several streams, has an id of its own.
            serve_log.set_request_id(request_id)
            log.exception("model %s failed", self._model.name)
            return EngineError(UNFORESEEN)

    async def _ready_batcher(self) -> "Batcher[BatchItem, TokenColumns]":
        if self._loading.done() and self._batcher is None and time.monotonic() - self._failed_at_s > LOAD_RETRY_S:
            self._loading = asyncio.create_task(self._load())
        # Shielded: a client that disconnects must not cancel a load that others wait for.
        await asyncio.shield(self._loading)
        if self._batcher is None:
            # The reason names paths and addresses of this machine, so it is for the log and for /ready.
            raise ModelUnavailable(f"The model `{self._model.name}` is unavailable: {LOAD_FAILED}.", param="model")
        return self._batcher

    async def _load(self) -> None:
        began_s = time.monotonic()
        self._set_state("starting")
        try:
            engine = await self._loop.run_in_executor(self._engine_thread, self._load_engine)
            sizes = await self._loop.run_in_executor(
                self._engine_thread, measure_sizes, engine, self._batching, self._max_window_samples, self._model.name
            )
        except Exception as error:
            if isinstance(error, EngineBroken):
                self._exit(error)
            self._failed_at_s = time.monotonic()
            reason = error.message if isinstance(error, SpeechError) else f"{type(error).__name__}: {error}"
            log.error("model %s could not be loaded: %s", self._model.name, reason, exc_info=not isinstance(error, SpeechError))
            self._set_state("failed", reason)
            return
        self._engine, self._decode_rate, info = engine, sizes.rate, engine.info
        self._batcher = Batcher(
            self._process,
            sizes.limits,
            prepare=self._prepare,
            prepares_ahead=info.device == "cuda",
            on_failing=self._exit_failing,
            on_batch=self._record_batch,
        )
        self._status = replace(
            self._status,
            device=info.device,
            precision=info.precision,
            decoder=info.decoder,
            max_batch_audio_s=sizes.max_audio_s,
            takes_keywords=info.keywords,
            fast_paths=info.fast_paths.used,
            fast_paths_left_out=info.fast_paths.left_out,
        )
        self._recorder.record(catalogue.MODEL_LOAD_SECONDS, time.monotonic() - began_s, self._model.name)
        self._set_state("ready")

    def _load_engine(self) -> Engine:
        """Runs on the engine thread."""
        model = self._model
        if model.source == "simulated":
            return SimulatedEngine(model.simulation)
        # Ray hides no GPU from a replica that reserves none.
        device = model.device if model.device != "auto" else "cuda" if ray.get_gpu_ids() else "cpu"
        resources: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
        path = find_model_file(model.source, timeout_s=model.load_timeout_s, on_progress=self._note_download)
        self._set_state("loading")
        engine = ParakeetEngine.load(
            path,
            device=device,
            precision=model.precision,
            fast_paths=model.fast_paths,
            cpu_threads=model.cpu_threads,
            gpu_share=resources.get("GPU", 1.0),
            keyword_weight=model.keyword_weight,
            decoder=model.decoder,
        )
        if engine.info.device == "cuda":
            engine.warm_up(self._max_window_samples, max_items=self._batching.max_batch_items)
        return engine

    def record_autoscaling_stats(self) -> dict[str, float]:
        """What Serve hands to the policy, see cluster/autoscaling.py."""
        demand, rate = self._demand, self._decode_rate
        return published(demand.remaining_s, demand.live_load, rate.value) if demand and rate else {}

    async def _prepare(self, batch: list[BatchItem]) -> Any:
        assert self._engine is not None
        windows, keywords, traces = zip(*batch, strict=True)
        if self._tracer is not None:
            window_trace.begin_batch(traces, windows)
        # On a CPU a second thread would take its core from the batch that runs.
        thread = self._prepare_thread if self._engine.info.device == "cuda" else self._engine_thread
        return await self._in_thread("prepare", thread, self._engine.prepare, windows, keywords)

    async def _process(self, batch: Any) -> list[TokenColumns]:
        assert self._engine is not None
        try:
            return await self._in_thread("recognise", self._engine_thread, self._engine.recognise, batch)
        finally:
            if self._decode_rate is not None:
                self._decode_rate.end()

    async def _in_thread(self, name: str, thread: ThreadPoolExecutor, stage: Callable[..., Result], *arguments: Any) -> Result:
        """The result of a stage of a batch. If the engine hangs or is broken, this process exits."""
        if self._broken is not None:
            raise self._broken
        began_s = time.monotonic()
        running = self._loop.run_in_executor(thread, stage, *arguments)
        try:
            async with asyncio.timeout(self._batching.batch_timeout_s):
                return await running
        except TimeoutError:
            hung = EngineBroken(f"A batch did not end within {self._batching.batch_timeout_s:.0f} s.")
            self._exit(hung)
            raise hung from None
        except EngineBroken as error:
            self._exit(error)
            raise
        finally:
            for metric in (catalogue.STEP_SECONDS, catalogue.BUSY_SECONDS):
                self._recorder.record(metric, time.monotonic() - began_s, self._model.name, name)

    def _record_batch(self, batch: BatchReport) -> None:
        record, model = self._recorder.record, self._model.name
        if self._decode_rate is not None:
            self._decode_rate.begin(batch.samples / SAMPLE_RATE)
        record(catalogue.BATCH_ITEMS, len(batch.waits), model)
        record(catalogue.BATCH_AUDIO_SECONDS, batch.samples / SAMPLE_RATE, model)
        record(catalogue.BATCH_PADDING_RATIO, 1 - batch.samples / max(1, batch.padded_samples), model)
        for lane, wait_s in batch.waits:
            record(catalogue.QUEUE_SECONDS, wait_s, model, LANE_NAMES[lane])

    def _exit_failing(self) -> None:
        self._exit(EngineBroken(f"{MAX_FAILED_BATCHES} batches in a row failed."))

    def _exit(self, error: EngineBroken) -> None:
        """End this process. Windows that it gets until then fail with `error`, so they are sent to another replica.

        Serve replaces a dead replica at once, but an unhealthy one only after half a minute, in which it would attract requests
        by failing them fast.
        """
        self._broken = error
        log.error("model %s: %s; this replica exits", self._model.name, error.message)
        self._loop.call_later(EXIT_GRACE_S, os._exit, 1)

    def _note_download(self, progress: DownloadProgress) -> None:
        done_mb = progress.done_bytes / 1e6
        total = "" if progress.total_bytes is None else f" of {progress.total_bytes / 1e6:.0f}"
        self._set_state("downloading", f"downloaded {done_mb:.0f}{total} MB")
        log.info("model %s: %s", self._model.name, self._status.detail)

    def _set_state(self, state: ModelState, detail: str = "") -> None:
        """Called from the event loop and from the engine thread."""
        self._status = replace(self._status, state=state, detail=detail)
        self._loop.call_soon_threadsafe(self._status_changed.set)

    async def _report(self) -> None:
        """Report the status to the registry whenever it changes, and every HEARTBEAT_S."""
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
                self._recorder.record(catalogue.QUEUED_WINDOWS, status.queued, self._model.name)
                if self._decode_rate is not None:
                    self._recorder.record(catalogue.DECODE_RATE, self._decode_rate.value, self._model.name)
            try:
                self._demand = await self._status_registry.report_model.remote(self._model.name, status)
            except Exception as error:
                self._demand = None
                log.warning("the status registry is unreachable: %s", error)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(HEARTBEAT_S):
                    await self._status_changed.wait()
            self._status_changed.clear()

    def __del__(self) -> None:
        """Serve calls it when the replica stops."""
        if self._tracer is not None:
            self._tracer.close()
