"""Failures in a model replica: its log and its answers. tests/server/ drives whole replicas."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from serve_app.cluster.autoscaling import LIVE, RATE, REMAINING
from serve_app.cluster.demand import Demand
from serve_app.cluster.shared_audio import Place, SharedAudio
from serve_app.cluster.status import ReplicaStatus
from serve_app.deployments import BatchItem, ModelReplica
from serve_app.engine.batch_cost import BatchCost
from serve_app.engine.batch_queue import MAX_FAILED_BATCHES, Batcher, BatchLimits, BatchReport
from serve_app.engine.decode_rate import DecodeRate
from serve_app.engine.protocol import Engine, EngineInfo
from serve_app.engine.simulated import SimulatedEngine
from serve_app.errors import UNFORESEEN, AudioUnreachable, EngineBroken, EngineError, ModelUnavailable, RequestError
from serve_app.observe import catalogue, serve_log
from serve_app.settings import BatchingSettings, ModelSettings, SimulationSettings
from serve_app.transcript import Token, TokenColumns
from serve_app.window import SAMPLE_RATE, Job, Lane, Samples
from testing.metrics import MemoryRecorder


@pytest.mark.parametrize(("error", "has_traceback"), [(ModelUnavailable("it is not there"), False), (KeyError("x"), True)])
def test_what_is_foreseen_is_logged_without_a_traceback(
    error: Exception, has_traceback: bool, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("test_deployments")
    log.addFilter(serve_log.without_traceback)
    try:
        raise error
    except Exception:
        log.exception("Request failed.")
    assert "Request failed." in caplog.text
    assert ("Traceback" in caplog.text) == has_traceback
    assert type(error).__name__ in caplog.text


class CtcEngine(SimulatedEngine):
    info = EngineInfo(device="cpu", precision="fp32", decoder="ctc", keywords=False)


NO_TIME = SimulationSettings(step_s=0, seconds_per_audio_s=0)


@pytest.mark.parametrize(("engine", "takes_keywords"), [(SimulatedEngine(NO_TIME), True), (CtcEngine(NO_TIME), False)])
async def test_a_loaded_replica_reports_whether_it_takes_keywords(engine: Engine, takes_keywords: bool) -> None:
    class Replica(ModelReplica):
        def _load_engine(self) -> Engine:
            return engine

    replica = object.__new__(Replica)
    replica._model = ModelSettings(name="m", source="bundled")
    replica._batching, replica._max_window_samples = BatchingSettings(), 32 * SAMPLE_RATE
    replica._loop, replica._status_changed = asyncio.get_running_loop(), asyncio.Event()
    replica._status = ReplicaStatus("a", "starting")
    with ThreadPoolExecutor(1) as replica._engine_thread:
        await replica._load()
    assert (replica._status.state, replica._status.takes_keywords) == ("ready", takes_keywords)


async def test_a_replica_publishes_the_demand_that_the_registry_answered_and_its_own_rate() -> None:
    replica = object.__new__(ModelReplica)
    assert replica.record_autoscaling_stats() == {}, "before anything is known"
    replica._demand = Demand(remaining_s=90.0, live_load=7.0)
    assert replica.record_autoscaling_stats() == {}, "before it is loaded"
    replica._decode_rate = DecodeRate(BatchCost(0.0, 0.5), full_audio_s=10.0)
    assert replica.record_autoscaling_stats() == {REMAINING: 90.0, LIVE: 7.0, RATE: 2.0}
    replica._demand = None
    assert replica.record_autoscaling_stats() == {}, "while the registry does not answer"


async def test_keywords_that_a_model_cannot_take_are_refused() -> None:
    replica = object.__new__(ModelReplica)
    replica._model, replica._audio = ModelSettings(name="m", source="bundled"), SharedAudio()
    replica._engine = engine = CtcEngine(NO_TIME)
    replica._loading = asyncio.create_task(asyncio.sleep(0))

    async def process(batch: list[BatchItem]) -> list[TokenColumns]:
        return engine.recognise([samples for samples, _, _ in batch])

    replica._batcher = Batcher(process, BatchLimits(max_samples=100_000, max_live_samples=100_000, max_items=8, ageing_s=1.0))
    window = np.zeros(16_000, np.int16)
    with pytest.raises(RequestError, match="takes no phrases") as refused:
        await replica.transcribe(Lane.BULK, Job("a", ("Zürich",)), False, window)
    assert refused.value.param == "keywords[]"
    assert isinstance(await replica.transcribe(Lane.BULK, Job("b"), False, window), TokenColumns)


async def test_windows_of_live_streams_that_fail_are_part_of_the_answer(caplog: pytest.LogCaptureFixture) -> None:
    """What is no SpeechError is logged here: an ingress may not even be able to unpickle it."""
    failures = {"broken": EngineBroken("the GPU failed"), "unforeseen": KeyError("/secret/path")}
    tokens = TokenColumns.of([Token("▁one", 1, 0, 1280, 0.9)])

    class Replica(ModelReplica):
        async def transcribe(self, lane: int, job: Job, is_isolated: bool, audio: Samples | Place) -> TokenColumns:
            assert (lane, is_isolated) == (Lane.LIVE, False)
            if job.job_id in failures:
                raise failures[job.job_id]
            return tokens

    replica = object.__new__(Replica)
    replica._model, replica._audio = ModelSettings(name="m", source="bundled"), SharedAudio()
    windows = [(Job(name), np.zeros(1_600, np.int16), "an-id") for name in ("fine", "broken", "unforeseen", "fine")]
    fine, broken, unforeseen, also_fine = await replica.transcribe_live(windows)
    assert fine is also_fine is tokens
    assert broken is failures["broken"]
    assert isinstance(unforeseen, EngineError)
    assert unforeseen.message == UNFORESEEN
    assert "/secret/path" in caplog.text


async def test_windows_of_live_streams_that_cannot_be_read_fail_together() -> None:
    """So that the ingress sends all of them again, with their audio."""
    replica = object.__new__(ModelReplica)
    replica._audio = SharedAudio()
    windows: list[Any] = [
        (Job("a"), np.zeros(1_600, np.int16), "an-id"),
        (Job("b"), Place("/proc/0/fd/3", (0, 0), 0, 5), "an-id"),
    ]
    with pytest.raises(AudioUnreachable):
        await replica.transcribe_live(windows)


async def test_a_replica_that_fails_every_batch_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that Serve replaces it. Until then, what it gets is sent to another one."""
    exits: list[int] = []
    monkeypatch.setattr("serve_app.replica.os._exit", exits.append)
    monkeypatch.setattr("serve_app.replica.EXIT_GRACE_S", 0.0)
    replica = object.__new__(ModelReplica)
    replica._model, replica._broken = ModelSettings(name="m", source="bundled"), None
    replica._audio, replica._batching, replica._loop = SharedAudio(), BatchingSettings(), asyncio.get_running_loop()
    replica._engine_thread = replica._prepare_thread = ThreadPoolExecutor(1)
    replica._loading = asyncio.create_task(asyncio.sleep(0))

    class FailingEngine(SimulatedEngine):
        def recognise(self, batch: Any) -> list[TokenColumns]:
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    replica._engine = FailingEngine(SimulationSettings(step_s=0, seconds_per_audio_s=0))
    limits = BatchLimits(max_samples=100_000, max_live_samples=100_000, max_items=8, ageing_s=1.0)
    replica._batcher = Batcher(replica._process, limits, prepare=replica._prepare, on_failing=replica._exit_failing)
    window = np.zeros(16_000, np.int16)
    for number in range(MAX_FAILED_BATCHES):
        assert exits == []
        with pytest.raises(RuntimeError, match="mat1"):
            await replica.transcribe(Lane.BULK, Job(str(number)), False, window)
    with pytest.raises(EngineBroken, match="5 batches in a row"):
        await replica.transcribe(Lane.BULK, Job("next"), False, window)
    await asyncio.sleep(0.01)
    assert exits == [1]


def test_metrics_of_a_batch() -> None:
    replica = object.__new__(ModelReplica)
    replica._model = ModelSettings(name="m", source="bundled")
    replica._recorder = recorder = MemoryRecorder()
    waits = ((Lane.LIVE, 0.25), (Lane.BULK, 3.0), (Lane.BULK, 2.0))
    replica._record_batch(BatchReport(waits, samples=9 * SAMPLE_RATE, padded_samples=12 * SAMPLE_RATE))
    values = recorder.values
    assert values(catalogue.BATCH_ITEMS, "m") == [3]
    assert values(catalogue.BATCH_AUDIO_SECONDS, "m") == [9]
    assert values(catalogue.BATCH_PADDING_RATIO, "m") == [0.25]
    assert values(catalogue.QUEUE_SECONDS, "m", "live") == [0.25]
    assert values(catalogue.QUEUE_SECONDS, "m", "bulk") == [3, 2]


async def test_metrics_of_a_stage_that_ends_and_of_one_that_fails(monkeypatch: pytest.MonkeyPatch) -> None:
    clock_s = 100.0
    monkeypatch.setattr("serve_app.deployments.time", SimpleNamespace(monotonic=lambda: clock_s))

    def stage(lasts_s: float) -> str:
        nonlocal clock_s
        clock_s += lasts_s
        if lasts_s > 1:
            raise EngineError("out of luck")
        return "done"

    replica = object.__new__(ModelReplica)
    replica._model = ModelSettings(name="m", source="bundled")
    replica._recorder = recorder = MemoryRecorder()
    replica._batching, replica._loop, replica._broken = BatchingSettings(), asyncio.get_running_loop(), None
    with ThreadPoolExecutor(1) as thread:
        assert await replica._in_thread("recognise", thread, stage, 0.5) == "done"
        with pytest.raises(EngineError):
            await replica._in_thread("recognise", thread, stage, 4.0)
        await replica._in_thread("prepare", thread, stage, 0.125)
    for metric in (catalogue.STEP_SECONDS, catalogue.BUSY_SECONDS):
        assert recorder.values(metric, "m", "recognise") == [0.5, 4.0]
        assert recorder.values(metric, "m", "prepare") == [0.125]
