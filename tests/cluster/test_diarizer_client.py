"""The client of a diarizer's replicas, on a fake deployment handle and in virtual time: retries, waiting, errors."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import pytest
from ray.exceptions import ActorDiedError
from ray.serve import context

from serve_app.cluster.calls import CHECK_S, MAX_ATTEMPTS, MAX_BY_VALUE_BYTES, RETRY_DELAY_S
from serve_app.cluster.diarizer_client import DiarizerClient
from serve_app.cluster.status import ReplicaStatus
from serve_app.diarization.chunks import Chunk
from serve_app.diarization.simulated import SHAPE
from serve_app.errors import UNFORESEEN, DiarizerChanged, EngineBroken, EngineError, ModelUnavailable
from serve_app.observe import catalogue
from testing import virtual_time
from testing.metrics import MemoryRecorder
from tests.cluster.test_model_client import FakeHandle, deployed

CHUNK = Chunk(np.ones(16_000, np.int16), 1280, 2560)
FOUND = (np.ones((10, 4), np.float16), b"next")
WAIT_S = 10.0


def client_with(
    answer: Callable[..., Awaitable[Any]],
    *statuses: ReplicaStatus,
    method: str = "step",
    is_deployed: Callable[[], Awaitable[bool]] = deployed,
) -> tuple[DiarizerClient, FakeHandle, MemoryRecorder]:
    replicas: Any = FakeHandle(method, answer)
    recorder = MemoryRecorder()
    return DiarizerClient("d", WAIT_S, replicas, lambda: statuses, is_deployed, recorder), replicas, recorder


def failing(*errors: Exception, then: Any = FOUND) -> Callable[..., Awaitable[Any]]:
    """Answers that fail in this order, and then do not."""
    left = list(errors)

    async def answer(*_: Any) -> Any:
        if left:
            raise left.pop(0)
        return then

    return answer


async def never(*_: Any) -> Any:
    await asyncio.sleep(1e9)


def test_a_step_has_all_that_a_replica_needs() -> None:
    client, handle, recorder = client_with(failing())
    assert virtual_time.run(client.step(CHUNK, b"state")) is FOUND
    ((samples, *rest),) = handle.calls
    assert samples is CHUNK.samples
    assert rest == [1280, 2560, b"state"]
    assert not handle.by_reference
    assert recorder.total(catalogue.DIARIZER_STEPS_RETRIED, "d") == 0


@pytest.mark.parametrize("method", ["step", "shape"])
def test_serve_cancels_no_call_together_with_its_request(method: str) -> None:
    seen: list[Any] = []

    async def answer(*_: Any) -> Any:
        seen.append(context._get_serve_request_context())
        return FOUND

    async def call() -> None:
        context._set_request_context(request_id="of a client", _internal_request_id="of Serve")
        client, _, _ = client_with(answer, method=method)
        await (client.shape() if method == "shape" else client.step(CHUNK, None))

    virtual_time.run(call())
    assert [(each.request_id, each._internal_request_id) for each in seen] == [("of a client", "")]


@pytest.mark.parametrize("error", [ActorDiedError(), EngineBroken("the GPU failed"), EngineError("once")])
def test_a_death_costs_one_resend(error: Exception) -> None:
    client, handle, recorder = client_with(failing(error))

    async def timed() -> float:
        assert await client.step(CHUNK, b"state") is FOUND
        return virtual_time.now_s()

    assert virtual_time.run(timed()) == RETRY_DELAY_S
    assert [call[1:] for call in handle.calls] == [(1280, 2560, b"state")] * 2
    assert recorder.total(catalogue.DIARIZER_STEPS_RETRIED, "d") == 1


def test_replicas_that_die_one_after_the_other_fail_the_step() -> None:
    client, handle, _ = client_with(failing(*[ActorDiedError()] * MAX_ATTEMPTS))
    with pytest.raises(EngineBroken, match="one after the other"):
        virtual_time.run(client.step(CHUNK, None))
    assert len(handle.calls) == MAX_ATTEMPTS


def test_what_nobody_foresaw_is_not_told() -> None:
    client, _, _ = client_with(failing(KeyError("/secret"), KeyError("/secret")))
    with pytest.raises(EngineError) as caught:
        virtual_time.run(client.step(CHUNK, None))
    assert caught.value.message == UNFORESEEN


def test_a_large_step_is_sent_by_reference() -> None:
    client, handle, _ = client_with(failing())
    virtual_time.run(client.step(Chunk(np.ones(MAX_BY_VALUE_BYTES // 2 - 10, np.int16), 0, 0), bytes(21)))
    assert handle.by_reference == [True]


def test_a_recording_waits_for_a_diarizer_to_load() -> None:
    async def answer() -> Any:
        await asyncio.sleep(WAIT_S - 1)
        return SHAPE

    client, _, _ = client_with(answer, method="shape")
    assert virtual_time.run(client.shape()) is SHAPE


@pytest.mark.parametrize(
    ("statuses", "reason"),
    [
        ((), "waiting for a free CPU or GPU"),
        ((ReplicaStatus("a", "loading"),), "it is still being loaded"),
        ((ReplicaStatus("a", "downloading", detail="downloaded 7 MB"),), "downloaded 7 MB"),
        ((ReplicaStatus("a", "failed", detail="/secret"),), "it could not be loaded"),
    ],
)
def test_the_reason_why_none_is_available(statuses: tuple[ReplicaStatus, ...], reason: str) -> None:
    client, _, _ = client_with(never, *statuses, method="shape")

    async def timed() -> float:
        with pytest.raises(ModelUnavailable, match="The diarizer `d`") as caught:
            await client.shape()
        assert reason in caught.value.message
        assert "/secret" not in caught.value.message
        assert caught.value.param == "diarize"
        return virtual_time.now_s()

    assert virtual_time.run(timed()) == pytest.approx(WAIT_S)


def test_one_that_is_loaded_may_take_its_time() -> None:
    async def answer() -> Any:
        await asyncio.sleep(5 * WAIT_S)
        return SHAPE

    client, _, _ = client_with(answer, ReplicaStatus("a", "ready"), method="shape")
    assert virtual_time.run(client.shape()) is SHAPE


def test_a_diarizer_that_is_removed_meanwhile() -> None:
    async def is_deployed() -> bool:
        return virtual_time.now_s() < 3 * CHECK_S

    client, _, _ = client_with(never, ReplicaStatus("a", "ready"), is_deployed=is_deployed)
    with pytest.raises(ModelUnavailable, match="removed"):
        virtual_time.run(client.step(CHUNK, None))


def test_a_step_does_not_wait_for_replicas_that_are_gone() -> None:
    client, _, _ = client_with(never)

    async def timed() -> float:
        with pytest.raises(ModelUnavailable):
            await client.step(CHUNK, b"state")
        return virtual_time.now_s()

    assert virtual_time.run(timed()) == pytest.approx(WAIT_S, abs=CHECK_S)


def test_the_state_of_another_diarizer_is_not_sent_again() -> None:
    client, handle, _ = client_with(failing(DiarizerChanged("of another")))
    with pytest.raises(DiarizerChanged):
        virtual_time.run(client.step(CHUNK, b"state"))
    assert len(handle.calls) == 1
