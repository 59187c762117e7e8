"""A replica of a diarizer: its turns, its failures, its metrics. tests/server/ drives whole ones."""

import asyncio
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pytest

from serve_app.cluster.status import ReplicaStatus
from serve_app.diarization.protocol import DiarizerEngine, Probabilities
from serve_app.diarization.simulated import SHAPE, SimulatedDiarizer
from serve_app.diarizer_deployment import MAX_FAILED_STEPS, DiarizerReplica
from serve_app.errors import DiarizerChanged, EngineBroken, ModelUnavailable
from serve_app.observe import catalogue
from serve_app.settings import DiarizerSettings, SimulationSettings
from serve_app.window import FRAME_SAMPLES, Samples
from testing.metrics import MemoryRecorder
from testing.voices import tone

SECOND = tone(1, 1.04)


class FailingDiarizer(SimulatedDiarizer):
    error: Exception = RuntimeError("mat1 and mat2 shapes cannot be multiplied")

    def step(self, samples: Samples, left_samples: int, right_samples: int, state: bytes | None) -> tuple[Probabilities, bytes]:
        raise self.error


def replica_with(engine: DiarizerEngine | None) -> DiarizerReplica:
    class Replica(DiarizerReplica):
        def _load_engine(self) -> DiarizerEngine:
            if engine is None:
                raise ModelUnavailable("/secret/path is missing")
            return engine

    replica = object.__new__(Replica)
    replica._diarizer = DiarizerSettings(name="d", source="simulated")
    replica._recorder, replica._step_timeout_s = MemoryRecorder(), 10.0
    replica._engine, replica._broken, replica._turn = None, None, asyncio.Lock()
    replica._steps = replica._failed_in_a_row = 0
    replica._failed_at_s = float("inf")
    replica._loop, replica._status_changed = asyncio.get_running_loop(), asyncio.Event()
    replica._status = ReplicaStatus("a", "starting")
    replica._engine_thread = ThreadPoolExecutor(1)
    replica._loading = asyncio.create_task(replica._load())
    return replica


def simulated(kind: type[SimulatedDiarizer] = SimulatedDiarizer) -> SimulatedDiarizer:
    return kind(SimulationSettings(step_s=0, seconds_per_audio_s=0))


async def test_steps_of_several_recordings_take_turns() -> None:
    replica = replica_with(simulated())
    assert await replica.shape() is SHAPE
    steps = [replica.step(SECOND, 0, FRAME_SAMPLES, None) for _ in range(3)]
    for found, state in await asyncio.gather(*steps):
        assert found.argmax(axis=1).tolist() == [0] * 12
        assert state == simulated().step(SECOND, 0, FRAME_SAMPLES, None)[1]
    status = replica._status_now()
    assert (status.state, status.device, status.precision, status.batches) == ("ready", "simulated", "none", 3)
    recorder: Any = replica._recorder
    assert recorder.total(catalogue.DIARIZER_AUDIO_SECONDS, "d") == pytest.approx(3 * 0.96)
    assert len(recorder.values(catalogue.DIARIZER_STEP_SECONDS, "d")) == 3


async def test_a_diarizer_that_cannot_be_loaded_says_so_without_its_paths() -> None:
    replica = replica_with(None)
    with pytest.raises(ModelUnavailable, match="The diarizer `d` is unavailable") as caught:
        await replica.step(SECOND, 0, 0, None)
    assert "/secret" not in caught.value.message
    assert caught.value.param == "diarize"
    assert (replica._status.state, replica._status.detail) == ("failed", "/secret/path is missing")


async def test_samples_that_may_not_be_written_to_are_copied() -> None:
    """So they come from Ray's object store."""
    seen: list[bool] = []

    class Looking(SimulatedDiarizer):
        def step(self, samples: Samples, *rest: Any) -> tuple[Probabilities, bytes]:
            seen.append(samples.flags.writeable)
            return super().step(samples, *rest)

    frozen = np.array(SECOND)
    frozen.flags.writeable = False
    await replica_with(simulated(Looking)).step(frozen, 0, 0, None)
    assert seen == [True]


@pytest.fixture
def exits(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    codes: list[int] = []
    monkeypatch.setattr("serve_app.replica.os._exit", codes.append)
    monkeypatch.setattr("serve_app.replica.EXIT_GRACE_S", 0.0)
    return codes


async def test_a_replica_that_fails_every_step_exits(exits: list[int]) -> None:
    replica = replica_with(simulated(FailingDiarizer))
    for _ in range(MAX_FAILED_STEPS):
        assert exits == []
        with pytest.raises(RuntimeError, match="mat1"):
            await replica.step(SECOND, 0, 0, None)
    with pytest.raises(EngineBroken, match="5 steps in a row"):
        await replica.step(SECOND, 0, 0, None)
    await asyncio.sleep(0.01)
    assert exits == [1]


async def test_a_replica_with_a_broken_device_exits(exits: list[int]) -> None:
    engine = simulated(FailingDiarizer)
    engine.error = EngineBroken("the GPU failed")  # type: ignore[attr-defined]
    replica = replica_with(engine)
    for _ in range(2):
        with pytest.raises(EngineBroken, match="the GPU failed"):
            await replica.step(SECOND, 0, 0, None)
    await asyncio.sleep(0.01)
    assert exits == [1]


async def test_states_of_an_older_diarizer_do_not_end_a_replica() -> None:
    replica = replica_with(simulated())
    for _ in range(MAX_FAILED_STEPS + 1):
        with pytest.raises(DiarizerChanged):
            await replica.step(SECOND, 0, 0, b"older")
    assert replica._broken is None
