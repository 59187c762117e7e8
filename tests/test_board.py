"""The board: who is heard of, and when everything at work is done."""

from serve_app.board import SILENT_AFTER_S, Board
from serve_app.service import ReplicaStatus


class Clock:
    now_s = 0.0

    def __call__(self) -> float:
        return self.now_s


async def test_replicas_that_went_silent_are_forgotten() -> None:
    clock = Clock()
    board = Board(clock)
    await board.report_model("m", ReplicaStatus("a", "ready"))
    clock.now_s = SILENT_AFTER_S - 1
    await board.report_model("m", ReplicaStatus("b", "loading"))
    await board.report_model("m", ReplicaStatus("b", "ready"))
    news = await board.report_ingress("i", is_done=False)
    assert [(r.replica_id, r.state) for r in news.models["m"]] == [("a", "ready"), ("b", "ready")]
    clock.now_s = SILENT_AFTER_S + 1
    assert [r.replica_id for r in (await board.report_ingress("i", is_done=False)).models["m"]] == ["b"]


async def test_drained_is_when_every_ingress_has_been_told_and_is_done() -> None:
    board = Board(Clock())
    assert not (await board.report_ingress("a", is_done=False)).is_draining
    await board.report_ingress("b", is_done=False)
    assert not await board.drain()
    assert (await board.report_ingress("a", is_done=False)).is_draining
    await board.report_ingress("a", is_done=True)
    assert not await board.drain()
    await board.report_ingress("b", is_done=True)
    assert await board.drain()


async def test_an_ingress_that_is_gone_is_not_waited_for() -> None:
    clock = Clock()
    board = Board(clock)
    await board.report_ingress("gone", is_done=False)
    clock.now_s = SILENT_AFTER_S + 1
    await board.report_ingress("here", is_done=True)
    assert await board.drain()


async def test_a_board_that_has_heard_of_nobody_knows_nothing() -> None:
    assert not await Board(Clock()).drain()
