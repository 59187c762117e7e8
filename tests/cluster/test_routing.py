"""Which replica gets a window: the one with the least audio of this ingress."""

import asyncio
import itertools
from collections import Counter, deque
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID, RequestMetadata
from ray.serve.request_router import PendingRequest

from serve_app.cluster.routing import LeastOutstandingRouter
from serve_app.cluster.shared_audio import SentAudio
from serve_app.window import SAMPLE_RATE

MODEL = DeploymentID("model", "app")
REPLICAS: list[Any] = [SimpleNamespace(replica_id=ReplicaID(name, MODEL)) for name in "abcd"]
METADATA = RequestMetadata(request_id="r", internal_request_id="i")
IDS = itertools.count()


def new_router(drain_s: float = 0.0) -> LeastOutstandingRouter:
    router = LeastOutstandingRouter(MODEL, DeploymentHandleSource.REPLICA, self_node_id="here")
    router.initialize_state(drain_s=drain_s)
    return router


def call(*seconds: float) -> Any:
    """A call that is being routed: with one window, or with the windows of several streams."""
    windows = [SentAudio(np.zeros(round(s * SAMPLE_RATE), np.int16)) for s in seconds or (30.0,)]
    return SimpleNamespace(
        args=[1, ("job", ()), windows[0]] if len(windows) == 1 else [[("job", window) for window in windows]],
        metadata=SimpleNamespace(internal_request_id=str(next(IDS))),
        routing_context=SimpleNamespace(should_backoff=False),
        future=asyncio.get_running_loop().create_future(),
    )


async def choose(router: LeastOutstandingRouter, pending: Any = None, replicas: list[Any] = REPLICAS) -> list[str]:
    """The replicas, best first."""
    ranks = await router.choose_replicas(replicas, pending)
    assert all(len(rank) == 1 for rank in ranks)
    return [rank[0].replica_id.unique_id for rank in ranks]


async def send(router: LeastOutstandingRouter, name: str, *seconds: float) -> Any:
    """A call that only this replica can take, and that is sent to it."""
    pending = call(*seconds)
    await choose(router, pending, [replica for replica in REPLICAS if replica.replica_id.unique_id == name])
    pending.future.set_result(None)
    return pending


def complete(router: LeastOutstandingRouter, name: str, pending: Any) -> None:
    router.on_request_completed(ReplicaID(name, MODEL), pending.metadata.internal_request_id)


async def test_windows_are_distributed_evenly() -> None:
    router = new_router()
    chosen = Counter([(await choose(router, call()))[0] for _ in range(10)])
    assert sorted(chosen.values()) == [2, 2, 3, 3]


async def test_the_replica_with_the_least_audio_comes_first_and_all_others_follow() -> None:
    router = new_router()
    sent = {
        name: [await send(router, name, 10.0) for _ in range(count)] for name, count in zip("abcd", (4, 3, 2, 2), strict=True)
    }
    for name in "cdd":
        complete(router, name, sent[name].pop())
    assert await choose(router) == ["d", "c", "b", "a"]


async def test_short_windows_count_as_little_as_they_are() -> None:
    router = new_router()
    for name, seconds in (("a", [30.0]), ("b", [5.0, 5.0, 5.0]), ("c", [8.0, 9.0]), ("d", [40.0])):
        for window_s in seconds:
            await send(router, name, window_s)
    assert await choose(router) == ["b", "c", "a", "d"]


async def test_a_call_with_windows_of_many_streams_counts_them_all() -> None:
    router = new_router()
    await send(router, "a", 4.0, 4.0, 4.0)
    await send(router, "b", 10.0)
    assert await choose(router, replicas=REPLICAS[:2]) == ["b", "a"]


async def test_a_choice_counts_until_its_call_is_completed() -> None:
    router = new_router()
    await send(router, "b", 20.0)
    pending = call(30.0)
    assert (await choose(router, pending, REPLICAS[:2]))[0] == "a"
    assert (await choose(router, replicas=REPLICAS[:2]))[0] == "b"
    pending.future.set_result(None)
    await asyncio.sleep(0)
    assert (await choose(router, replicas=REPLICAS[:2]))[0] == "b"
    complete(router, "a", pending)
    assert (await choose(router, replicas=REPLICAS[:2]))[0] == "a"


async def test_of_two_batches_the_one_that_began_earlier_is_done_sooner(monkeypatch: pytest.MonkeyPatch) -> None:
    """Both replicas have the same audio; they do 100 s of it per second."""
    now_s = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    router = new_router()
    for name, began_s in (("a", 1000.2), ("b", 1000.0)):
        now_s = began_s - 0.3
        first = await send(router, name, 29.0)
        for _ in range(3):
            await send(router, name, 30.0)
        now_s = began_s
        complete(router, name, first)
    now_s = 1000.3
    assert await choose(router, replicas=REPLICAS[:2]) == ["b", "a"]
    await send(router, "b", 15.0)
    assert await choose(router, replicas=REPLICAS[:2]) == ["b", "a"]
    await send(router, "b", 15.0)
    assert await choose(router, replicas=REPLICAS[:2]) == ["a", "b"]


async def test_a_replica_that_hangs_gets_hardly_more_than_others(monkeypatch: pytest.MonkeyPatch) -> None:
    now_s = 1000.0
    monkeypatch.setattr("time.monotonic", lambda: now_s)
    router, queue = new_router(), deque[Any]()
    for _ in range(8):
        await send(router, "b", 10.0)
    for _ in range(60):
        chosen = (await choose(router, pending := call(10.0), REPLICAS[:2]))[0]
        pending.future.set_result(None)
        assert chosen == "a"
        queue.append(pending)
        now_s += 0.1
        if len(queue) > 3:
            complete(router, "a", queue.popleft())


def only(router: LeastOutstandingRouter, replica: Any) -> None:
    """Have Serve's own code choose this replica, once it was ranked."""
    router._replicas, router._replicas_list, router._replica_id_set = (
        {replica.replica_id: replica},
        [replica],
        {replica.replica_id},
    )

    async def select(candidates: list[Any], _: int) -> Any:
        return candidates[0]

    router._select_from_candidate_replicas = select  # type: ignore[method-assign, assignment]


@pytest.mark.parametrize("windows", [1, 3])
async def test_the_audio_of_a_call_knows_whether_its_replica_is_on_this_node(windows: int) -> None:
    """Also when the call is routed again."""
    router, pending = new_router(), PendingRequest(args=call(*[10.0] * windows).args, kwargs={}, metadata=METADATA)
    audio = [pending.args[2]] if windows == 1 else [window for _, window in pending.args[0]]
    for node_id, is_near in (("here", True), ("elsewhere", False), ("here", True)):
        only(router, SimpleNamespace(replica_id=REPLICAS[0].replica_id, node_id=node_id))
        pending.reset_future()  # type: ignore[no-untyped-call]
        await router._choose_replica_for_request(pending)
        assert [each.is_near for each in audio] == [is_near] * windows


@pytest.mark.parametrize("passes", range(6))
async def test_a_call_that_is_cancelled_on_its_way_to_a_replica_is_forgotten(passes: int) -> None:
    """In Serve's own code, after so many passes of the event loop: before the choice, after it, when it is done."""
    router = new_router()
    replica: Any = SimpleNamespace(replica_id=REPLICAS[0].replica_id, node_id="here")
    only(router, replica)
    pending = PendingRequest(args=call(30.0).args, kwargs={}, metadata=METADATA)
    choosing = asyncio.ensure_future(router._choose_replica_for_request(pending))
    for _ in range(passes):
        await asyncio.sleep(0)
    was_cancelled = choosing.cancel()
    await asyncio.wait([choosing])
    assert was_cancelled == choosing.cancelled()
    assert len(router._calls) == len(router._outstanding) == (0 if was_cancelled else 1)
    router.on_request_completed(replica.replica_id, "i")
    assert not router._calls
    assert not router._outstanding


async def test_a_call_that_is_routed_again_counts_once() -> None:
    router, pending = new_router(), call(30.0)
    await choose(router, pending, REPLICAS[:1])
    await choose(router, pending, REPLICAS[1:2])
    assert (await choose(router, replicas=REPLICAS[:2]))[0] == "a"
    complete(router, "b", pending)
    await send(router, "a", 1.0)
    assert (await choose(router, replicas=REPLICAS[:2]))[0] == "b"


async def test_the_connection_to_a_removed_replica_is_closed_once_it_had_its_time() -> None:
    """In place of Serve's replicas: all that the router uses of them."""
    closed = []

    class Channel:
        def __init__(self, name: str) -> None:
            self._name = name

        async def close(self) -> None:
            closed.append(self._name)

    async def get_queue_len(**_: object) -> int:
        return 0

    def replica(name: str, channel: Channel | None) -> Any:
        replica_id = ReplicaID(name, MODEL)
        return SimpleNamespace(replica_id=replica_id, _channel=channel, multiplexed_model_ids=(), get_queue_len=get_queue_len)

    router = new_router(drain_s=0.1)
    replicas = [replica("a", Channel("a")), replica("b", Channel("b")), replica("c", None)]
    router.update_replicas(replicas)
    router.update_replicas(replicas[1:2])
    await asyncio.sleep(0)
    assert closed == []
    await asyncio.sleep(0.3)
    assert closed == ["a"]


async def test_ingress_processes_do_not_all_begin_with_the_same_replica() -> None:
    assert len({(await choose(new_router()))[0] for _ in range(50)}) > 1


async def test_a_replica_that_failed_before_anything_was_sent_is_not_preferred_for_ever() -> None:
    router = new_router()
    for _ in range(3):
        complete(router, "a", call())
    sent = {name: await send(router, name) for name in "bcda"}
    complete(router, "b", sent["b"])
    assert (await choose(router))[0] == "b"


async def test_a_call_that_no_replica_takes_waits_before_the_next_try() -> None:
    pending = call()
    await new_router().choose_replicas([], pending)
    assert pending.routing_context.should_backoff


async def test_no_replicas() -> None:
    assert await choose(new_router(), replicas=[]) == []


async def test_a_call_that_is_cancelled_while_it_gets_its_replica(monkeypatch: pytest.MonkeyPatch) -> None:
    router, pending = new_router(), call()
    router._pending_requests_to_fulfill.append(pending)
    monkeypatch.setattr(router, "_cancel_routing_task_for_pending_request", lambda pending: pending.future.cancel())
    monkeypatch.setattr(router, "_record_queue_wait_time", lambda pending: None)
    router._fulfill_next_pending_request(REPLICAS[0])
    assert pending.future.cancelled()
