"""Which replica gets a window: the one with the fewest of this ingress."""

import asyncio
from collections import Counter
from types import SimpleNamespace
from typing import Any

from ray.serve._private.common import DeploymentHandleSource, DeploymentID, ReplicaID

from serve_app.cluster.routing import LeastOutstandingRouter

MODEL = DeploymentID("model", "app")
REPLICAS: list[Any] = [SimpleNamespace(replica_id=ReplicaID(name, MODEL)) for name in "abcd"]


def new_router() -> LeastOutstandingRouter:
    router = LeastOutstandingRouter(MODEL, DeploymentHandleSource.REPLICA)  # type: ignore[no-untyped-call]
    router.initialize_state()
    return router


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


def test_choices_before_anything_was_sent_go_to_different_replicas() -> None:
    """Several windows are routed at once: the second is chosen for before the first was sent."""
    router = new_router()
    assert {choose(router)[0] for _ in REPLICAS} == set("abcd")


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


def test_a_request_that_no_replica_takes_waits_before_the_next_try() -> None:
    pending: Any = SimpleNamespace(routing_context=SimpleNamespace(should_backoff=False))
    asyncio.run(new_router().choose_replicas(REPLICAS, pending))
    assert pending.routing_context.should_backoff


def test_no_replicas() -> None:
    assert choose(new_router(), []) == []
