"""The Serve deployment of a model: `ModelReplica` holds one loaded copy and batches the windows of all requests."""

import asyncio
import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any, ClassVar, TypeAlias, TypeVar

import ray
from ray import serve

from serve_app.cluster.autoscaling import published
from serve_app.cluster.calls import DeploymentHandle
from serve_app.cluster.shared_audio import Place, SharedAudio, received
from serve_app.cluster.status import ReplicaStatus
from serve_app.engine.batch_queue import MAX_FAILED_BATCHES, Batcher, BatchReport
from serve_app.engine.batch_sizes import measure_sizes
from serve_app.engine.decode_rate import DecodeRate
from serve_app.engine.model_files import find_model_file
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.engine.protocol import Engine
from serve_app.engine.simulated import SimulatedEngine
from serve_app.errors import UNFORESEEN, EngineBroken, EngineError, RequestError, SpeechError
from serve_app.observe import catalogue, serve_log, tracers, window_trace
from serve_app.observe.job_meter import LANE_NAMES
from serve_app.observe.tracing import Tracer
from serve_app.observe.window_trace import WindowTrace
from serve_app.replica import Replica, device_of
from serve_app.settings import BatchingSettings, LogFormat, ModelSettings, TracingSettings
from serve_app.transcript import TokenColumns
from serve_app.window import SAMPLE_RATE, Job, Keywords, Lane, Samples

log = logging.getLogger("ray.serve")

BatchItem: TypeAlias = tuple[Samples, Keywords, WindowTrace | None]
Result = TypeVar("Result")


class ModelReplica(Replica):
    """One copy of one model. On a GPU, a second thread prepares batches."""

    KIND: ClassVar = "model"
    PARAM: ClassVar = "model"

    _tracer: Tracer | None = None
    _decode_rate: DecodeRate | None = None

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
        context = serve.get_replica_context()
        self._tracer = tracers.open_tracer(tracing_settings, context.deployment, context.replica_id.unique_id)
        self._model = model
        self._batching = batching
        self._max_window_samples = round(max_window_s * SAMPLE_RATE)
        self._prepare_thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="prepare")
        self._audio = SharedAudio()
        self._engine: Engine | None = None
        self._batcher: Batcher[BatchItem, TokenColumns] | None = None
        await self._begin(status_registry, log_format)

    @property
    def _name(self) -> str:
        return self._model.name

    @property
    def _is_loaded(self) -> bool:
        return self._batcher is not None

    async def transcribe(self, lane: int, job: Job, is_isolated: bool, audio: Samples | Place) -> TokenColumns:
        """Tokens of one window, int16 [samples] or where they are, with times from its start.

        Raises ModelUnavailable, EngineError, AudioUnreachable, or RequestError for keywords that the model cannot take.
        """
        await self._require_loaded()
        assert self._batcher is not None
        if job.keywords and self._engine is not None and not self._engine.info.keywords:
            raise RequestError(
                f"The model `{self._model.name}` has a CTC decoder, which takes no phrases, in `keywords[]` or in `prompt`.",
                param="keywords[]",
            )
        samples = received(audio, self._audio.new_samples)
        with window_trace.traced(self._tracer, job) as trace:
            item = (samples, job.keywords, trace)
            return await self._batcher.submit(item, len(samples), Lane(lane), job.job_id, is_isolated=is_isolated)

    async def transcribe_live(self, windows: Sequence[tuple[Job, Samples | Place, str]]) -> list[TokenColumns | SpeechError]:
        """The same for windows of several live streams; their failures are part of the answer. Raises AudioUnreachable."""
        read = [(job, received(audio, self._audio.new_samples), request_id) for job, audio, request_id in windows]
        return await asyncio.gather(*(self._outcome(*window) for window in read))

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

    async def _open(self) -> ReplicaStatus:
        engine = await self._loop.run_in_executor(self._engine_thread, self._load_engine)
        sizes = await self._loop.run_in_executor(
            self._engine_thread, measure_sizes, engine, self._batching, self._max_window_samples, self._model.name
        )
        self._engine, self._decode_rate, info = engine, sizes.rate, engine.info
        self._batcher = Batcher(
            self._process,
            sizes.limits,
            prepare=self._prepare,
            prepares_ahead=info.device == "cuda",
            on_failing=self._exit_failing,
            on_batch=self._record_batch,
        )
        return replace(
            self._status,
            device=info.device,
            precision=info.precision,
            decoder=info.decoder,
            max_batch_audio_s=sizes.max_audio_s,
            takes_keywords=info.keywords,
            fast_paths=info.fast_paths.used,
            fast_paths_left_out=info.fast_paths.left_out,
        )

    def _load_engine(self) -> Engine:
        """Runs on the engine thread."""
        model = self._model
        if model.source == "simulated":
            return SimulatedEngine(model.simulation)
        resources: dict[str, float] = ray.get_runtime_context().get_assigned_resources()  # type: ignore[no-untyped-call]
        path = find_model_file(model.source, timeout_s=model.load_timeout_s, on_progress=self._note_download)
        self._set_state("loading")
        engine = ParakeetEngine.load(
            path,
            device=device_of(model.device),
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
        began_s = time.monotonic()
        try:
            return await self._guarded(self._batching.batch_timeout_s, thread, stage, *arguments)
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

    def _status_now(self) -> ReplicaStatus:
        if self._batcher is None:
            return self._status
        stats = self._batcher.stats
        self._recorder.record(catalogue.QUEUED_WINDOWS, self._batcher.queued, self._model.name)
        if self._decode_rate is not None:
            self._recorder.record(catalogue.DECODE_RATE, self._decode_rate.value, self._model.name)
        return replace(
            self._status,
            batches=stats.batches,
            windows=stats.items,
            largest_batch=stats.largest_batch,
            queued=self._batcher.queued,
        )

    def __del__(self) -> None:
        """Serve calls it when the replica stops."""
        if self._tracer is not None:
            self._tracer.close()
