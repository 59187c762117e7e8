"""The two stages of a batch in the batch queue, in virtual time."""

import asyncio

from serve_app.engine.batch_queue import Batcher, BatchLimits
from serve_app.window import Lane
from testing import virtual_time
from tests.engine.test_batch_queue import STEP_S, scenario, submit_at


def make_two_stage_batcher(
    *,
    prepares_ahead: bool = True,
    max_samples: int = 10_000,
    max_items: int = 2,
    ageing_s: float = 5.0,
    fail_on: str | None = None,
) -> tuple[Batcher[str, str], list[tuple[float, str, str]]]:
    """A batcher whose stages take STEP_S each, and the list of (start, stage, items)."""
    log: list[tuple[float, str, str]] = []

    async def prepare(items: list[str]) -> str:
        log.append((round(virtual_time.now_s(), 3), "prepare", "".join(items)))
        await asyncio.sleep(STEP_S / 2)
        if fail_on in items:
            raise ValueError("bad item")
        return "".join(items)

    async def process(prepared: str) -> list[str]:
        log.append((round(virtual_time.now_s(), 3), "process", prepared))
        await asyncio.sleep(STEP_S)
        return list(prepared.upper())

    limits = BatchLimits(max_samples=max_samples, max_live_samples=max_samples, max_items=max_items, ageing_s=ageing_s)
    batcher = Batcher(process, limits, prepare=prepare, prepares_ahead=prepares_ahead, now_s=virtual_time.now_s)
    return batcher, log


@scenario
async def test_a_full_batch_is_prepared_while_another_one_runs() -> None:
    batcher, log = make_two_stage_batcher()
    assert await asyncio.gather(*(batcher.submit(name, 100, Lane.BULK, name) for name in "abcde")) == list("ABCDE")
    assert log == [
        (0.0, "prepare", "ab"),
        (0.0, "prepare", "cd"),
        (0.05, "process", "ab"),
        (0.15, "process", "cd"),
        (0.25, "prepare", "e"),
        (0.3, "process", "e"),
    ]


@scenario
async def test_without_preparing_ahead_the_stages_follow_each_other() -> None:
    batcher, log = make_two_stage_batcher(prepares_ahead=False)
    await asyncio.gather(*(batcher.submit(name, 100, Lane.BULK, name) for name in "abcd"))
    assert [(stage, items) for _, stage, items in log] == [
        ("prepare", "ab"),
        ("process", "ab"),
        ("prepare", "cd"),
        ("process", "cd"),
    ]


@scenario
async def test_items_that_fill_a_batch_while_another_one_runs_are_prepared_then() -> None:
    batcher, log = make_two_stage_batcher()
    await asyncio.gather(submit_at(batcher, 0.0, "a"), submit_at(batcher, 0.02, "b"), submit_at(batcher, 0.04, "c"))
    assert log == [
        (0.0, "prepare", "a"),
        (0.04, "prepare", "bc"),
        (0.05, "process", "a"),
        (0.15, "process", "bc"),
    ]


@scenario
async def test_more_urgent_items_go_before_a_batch_that_is_prepared() -> None:
    batcher, log = make_two_stage_batcher()
    bulk = [submit_at(batcher, 0.0, name) for name in "abcd"]
    await asyncio.gather(*bulk, submit_at(batcher, 0.06, "l", lane=Lane.LIVE))
    assert [items for _, stage, items in log if stage == "process"] == ["ab", "l", "cd"]


@scenario
async def test_a_batch_whose_preparation_fails_is_run_one_by_one() -> None:
    batcher, _ = make_two_stage_batcher(fail_on="c")
    outcomes = await asyncio.gather(*(batcher.submit(name, 100, Lane.BULK, name) for name in "abcd"), return_exceptions=True)
    assert [outcome for outcome in outcomes if isinstance(outcome, str)] == ["A", "B", "D"]
    assert isinstance(outcomes[2], ValueError)
    assert batcher.queued == 0


@scenario
async def test_a_batch_that_is_prepared_counts_as_queued() -> None:
    batcher, _ = make_two_stage_batcher()
    waiting = [asyncio.ensure_future(batcher.submit(name, 100, Lane.BULK, name)) for name in "abcde"]
    await asyncio.sleep(STEP_S / 4)
    assert batcher.queued == 3
    await asyncio.gather(*waiting)
    assert batcher.queued == 0


@scenario
async def test_a_batch_that_is_prepared_does_not_starve() -> None:
    """Live windows without end; the batch of c and d has aged after 0.1 s."""
    batcher, log = make_two_stage_batcher(ageing_s=0.1)
    bulk = [submit_at(batcher, 0.0, name) for name in "abcd"]
    live = [submit_at(batcher, 0.01 + 0.05 * n, "l", lane=Lane.LIVE) for n in range(60)]
    await asyncio.gather(*bulk, *live)
    batches = [items for _, stage, items in log if stage == "process"]
    assert 2 <= batches.index("cd") <= 6


@scenario
async def test_a_limit_that_no_item_keeps_means_batches_of_one() -> None:
    batcher, log = make_two_stage_batcher(max_samples=0)
    assert await batcher.submit("a", 100, Lane.BULK, "a") == "A"
    assert await asyncio.gather(*(batcher.submit(name, 100, Lane.LIVE, name) for name in "bc")) == ["B", "C"]
    assert [items for _, stage, items in log if stage == "process"] == ["a", "b", "c"]


@scenario
async def test_a_batch_is_not_formed_ahead_while_it_has_room() -> None:
    """Three long windows of a file wait, not enough for a batch; then short requests come, which share one."""
    batcher, log = make_two_stage_batcher(max_samples=1_000, max_items=8)
    waiting = [asyncio.ensure_future(batcher.submit("r", 300, Lane.BULK, "running"))]
    await asyncio.sleep(STEP_S / 4)
    waiting += [asyncio.ensure_future(batcher.submit(name, 300, Lane.BULK, "file")) for name in "xyz"]
    await asyncio.sleep(STEP_S / 4)
    waiting += [asyncio.ensure_future(batcher.submit(name, 100, Lane.INTERACTIVE, name)) for name in "abcd"]
    await asyncio.gather(*waiting)
    assert [items for _, stage, items in log if stage == "process"] == ["r", "abcd", "xyz"]
