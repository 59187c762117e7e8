"""Failures in a model replica: its log and its answers. tests/server/ drives whole replicas."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from serve_app.cluster.status import ReplicaStatus
from serve_app.deployments import BatchItem, ModelReplica, without_traceback
from serve_app.engine.batch_queue import MAX_FAILED_BATCHES, Batcher, BatchLimits
from serve_app.engine.protocol import Engine, EngineInfo
from serve_app.engine.simulated import SimulatedEngine
from serve_app.errors import UNFORESEEN, EngineBroken, EngineError, ModelUnavailable, RequestError
from serve_app.settings import BatchingSettings, ModelSettings, SimulationSettings
from serve_app.transcript import Token, TokenColumns
from serve_app.window import SAMPLE_RATE, Job, Lane, Samples


@pytest.mark.parametrize(("error", "has_traceback"), [(ModelUnavailable("it is not there"), False), (KeyError("x"), True)])
def test_what_is_foreseen_is_logged_without_a_traceback(
    error: Exception, has_traceback: bool, caplog: pytest.LogCaptureFixture
) -> None:
    log = logging.getLogger("test_deployments")
    log.addFilter(without_traceback)
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


async def test_keywords_that_a_model_cannot_take_are_refused() -> None:
    replica = object.__new__(ModelReplica)
    replica._model = ModelSettings(name="m", source="bundled")
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
        async def transcribe(self, lane: int, job: Job, is_isolated: bool, samples: Samples) -> TokenColumns:
            assert (lane, is_isolated) == (Lane.LIVE, False)
            if job.job_id in failures:
                raise failures[job.job_id]
            return tokens

    replica = object.__new__(Replica)
    replica._model = ModelSettings(name="m", source="bundled")
    windows = [(Job(name), np.zeros(1_600, np.int16), "an-id") for name in ("fine", "broken", "unforeseen", "fine")]
    fine, broken, unforeseen, also_fine = await replica.transcribe_live(windows)
    assert fine is also_fine is tokens
    assert broken is failures["broken"]
    assert isinstance(unforeseen, EngineError)
    assert unforeseen.message == UNFORESEEN
    assert "/secret/path" in caplog.text


async def test_a_replica_that_fails_every_batch_exits(monkeypatch: pytest.MonkeyPatch) -> None:
    """So that Serve replaces it. Until then, what it gets is sent to another one."""
    exits: list[int] = []
    monkeypatch.setattr("serve_app.deployments.os._exit", exits.append)
    monkeypatch.setattr("serve_app.deployments.EXIT_GRACE_S", 0.0)
    replica = object.__new__(ModelReplica)
    replica._model, replica._broken = ModelSettings(name="m", source="bundled"), None
    replica._batching, replica._loop = BatchingSettings(), asyncio.get_running_loop()
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
