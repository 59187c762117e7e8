"""Which replica gets a window: the one with the fewest of this ingress."""

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

import pytest
from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID

from serve_app.cluster.routing import LeastOutstandingRouter

MODEL = DeploymentID("model", "app")
REPLICAS: list[Any] = [SimpleNamespace(replica_id=ReplicaID(name, MODEL)) for name in "abcd"]


def new_router(drain_s: float = 0.0) -> LeastOutstandingRouter:
    router = LeastOutstandingRouter(MODEL, DeploymentHandleSource.REPLICA)  # type: ignore[no-untyped-call]
    router.initialize_state(drain_s=drain_s)
    return router


def call() -> Any:
    """A call that is being routed."""
    context = SimpleNamespace(should_backoff=False)
    return SimpleNamespace(routing_context=context, future=asyncio.get_running_loop().create_future())


def choose(router: LeastOutstandingRouter, replicas: list[Any] = REPLICAS) -> list[str]:
    """The replicas, best first."""
    ranks = asyncio.run(router.choose_replicas(replicas))
    assert all(len(rank) == 1 for rank in ranks)
    return [rank[0].replica_id.unique_id for rank in ranks]


def send(router: LeastOutstandingRouter, name: str) -> None:
    router.on_send_request(ReplicaID(name, MODEL))


def complete(router: LeastOutstandingRouter, name: str) -> None:
    router.on_request_completed(ReplicaID(name, MODEL), "request")


def test_windows_are_distributed_evenly() -> None:
    router, sent = new_router(), Counter[str]()
    for _ in range(10):
        best = choose(router)[0]
        send(router, best)
        sent[best] += 1
    assert sorted(sent.values()) == [2, 2, 3, 3]


def test_the_replica_with_the_fewest_windows_comes_first_and_all_others_follow() -> None:
    router = new_router()
    for name in "abcd" * 2 + "aab":
        send(router, name)
    for name in "cdd":
        complete(router, name)
    assert choose(router) == ["d", "c", "b", "a"]


@pytest.mark.parametrize("loads", ["", "bccddd", "bcd"])
async def test_calls_that_are_routed_before_any_of_them_is_sent(loads: str) -> None:
    router, counts = new_router(), Counter(loads)
    for name in loads:
        send(router, name)
    for _ in range(12):
        ranks = await router.choose_replicas(REPLICAS, call())
        counts[ranks[0][0].replica_id.unique_id] += 1
    assert max(counts.values()) - min(counts.values()) <= 1


@pytest.mark.parametrize("is_cancelled", [True, False])
async def test_a_choice_counts_until_its_call_is_sent_or_cancelled(is_cancelled: bool) -> None:
    router = new_router()
    calls = [call() for _ in range(4)]
    for pending in calls:
        await router.choose_replicas(REPLICAS[:1], pending)
    for name in "bbcccdddd":
        send(router, name)
    assert (await router.choose_replicas(REPLICAS))[0][0].replica_id.unique_id == "b"
    for pending in calls:
        if is_cancelled:
            pending.future.cancel()
        else:
            pending.future.set_result(REPLICAS[0])
            send(router, "a")
    await asyncio.sleep(0)
    best = (await router.choose_replicas(REPLICAS))[0][0].replica_id.unique_id
    assert best == ("a" if is_cancelled else "b")


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


def test_ingress_processes_do_not_all_begin_with_the_same_replica() -> None:
    assert len({choose(new_router())[0] for _ in range(50)}) > 1


def test_a_replica_that_failed_before_anything_was_sent_is_not_preferred_for_ever() -> None:
    router = new_router()
    for _ in range(3):
        complete(router, "a")
    for name in "bcd":
        send(router, name)
    send(router, "a")
    complete(router, "b")
    assert choose(router)[0] == "b"


async def test_a_call_that_no_replica_takes_waits_before_the_next_try() -> None:
    pending = call()
    await new_router().choose_replicas([], pending)
    assert pending.routing_context.should_backoff


def test_no_replicas() -> None:
    assert choose(new_router(), []) == []
