"""The status registry: which replicas it knows, and when every ingress is drained."""

from serve_app.cluster.demand import Demand
from serve_app.cluster.status import EXPIRE_S, ReplicaStatus, StatusRegistry


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def test_replicas_that_no_longer_report_expire() -> None:
    clock = Clock()
    registry = StatusRegistry(clock)
    await registry.report_model("m", ReplicaStatus("a", "ready"))
    clock.now_s = EXPIRE_S - 1
    await registry.report_model("m", ReplicaStatus("b", "loading"))
    await registry.report_model("m", ReplicaStatus("b", "ready"))
    status = await registry.report_ingress("i", is_drained=False)
    assert [(r.replica_id, r.state) for r in status.models["m"]] == [("a", "ready"), ("b", "ready")]
    clock.now_s = EXPIRE_S + 1
    assert [r.replica_id for r in (await registry.report_ingress("i", is_drained=False)).models["m"]] == ["b"]


async def test_drained_is_when_every_ingress_knows_and_is_drained() -> None:
    registry = StatusRegistry(Clock())
    assert not (await registry.report_ingress("a", is_drained=False)).is_draining
    await registry.report_ingress("b", is_drained=False)
    assert not await registry.drain()
    assert (await registry.report_ingress("a", is_drained=False)).is_draining
    await registry.report_ingress("a", is_drained=True)
    assert not await registry.drain()
    await registry.report_ingress("b", is_drained=True)
    assert await registry.drain()


async def test_draining_does_not_wait_for_an_ingress_that_is_gone() -> None:
    clock = Clock()
    registry = StatusRegistry(clock)
    await registry.report_ingress("gone", is_drained=False)
    clock.now_s = EXPIRE_S + 1
    await registry.report_ingress("here", is_drained=True)
    assert await registry.drain()


async def test_a_replica_gets_the_demand_of_every_ingress_for_its_model() -> None:
    clock = Clock()
    registry = StatusRegistry(clock)
    replica = ReplicaStatus("r", "ready")
    assert await registry.report_model("m", replica) == Demand()
    await registry.report_ingress("a", is_drained=False, demands={"m": Demand(7.0, 1.0), "other": Demand(1000.0)})
    clock.now_s = EXPIRE_S - 1
    await registry.report_ingress("b", is_drained=False, demands={"m": Demand(30.0, 0.5)})
    assert await registry.report_model("m", replica) == Demand(37.0, 1.5)
    await registry.report_ingress("b", is_drained=False, demands={"m": Demand(20.0, 0.0)})
    assert await registry.report_model("m", replica) == Demand(27.0, 1.0), "the last report counts"
    clock.now_s = EXPIRE_S + 1
    assert await registry.report_model("m", replica) == Demand(20.0, 0.0), "a is gone"


async def test_without_an_ingress_nothing_is_drained() -> None:
    assert not await StatusRegistry(Clock()).drain()
