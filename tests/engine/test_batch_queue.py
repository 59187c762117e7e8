"""The batch queue, in virtual time."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest

from serve_app.engine.batch_queue import LIVE_S, MAX_FAILED_BATCHES, Batcher, BatchLimits, BatchReport
from serve_app.errors import EngineBroken, EngineError, RequestError
from serve_app.window import Lane
from testing import virtual_time

STEP_S = 0.1


def make_batcher(
    *,
    max_samples: int = 10_000,
    max_live_samples: int | None = None,
    max_items: int = 32,
    ageing_s: float = 5.0,
    fail_on: str | None = None,
    on_batch: Callable[[BatchReport], None] = lambda report: None,
) -> tuple[Batcher[str, str], list[list[str]]]:
    """A batcher whose engine takes STEP_S per batch and returns items in upper case, and the list of the batches that it ran."""
    batches: list[list[str]] = []

    async def process(items: list[str]) -> list[str]:
        batches.append(items)
        await asyncio.sleep(STEP_S)
        if fail_on in items:
            raise ValueError("bad item")
        return [item.upper() for item in items]

    live = max_samples if max_live_samples is None else max_live_samples
    limits = BatchLimits(max_samples=max_samples, max_live_samples=live, max_items=max_items, ageing_s=ageing_s)
    return Batcher(process, limits, on_batch=on_batch, now_s=virtual_time.now_s), batches


async def submit_at(
    batcher: Batcher[str, str], at_s: float, name: str, samples: int = 100, lane: Lane = Lane.BULK, job: str = ""
) -> str:
    await asyncio.sleep(at_s - virtual_time.now_s())
    return await batcher.submit(name, samples, lane, job or name)


def scenario(test: Callable[[], Awaitable[None]]) -> Callable[[], None]:
    """Run an async test in virtual time."""

    def run() -> None:
        virtual_time.run(test())  # type: ignore[arg-type]

    run.__name__, run.__doc__ = test.__name__, test.__doc__
    return run


@scenario
async def test_an_idle_engine_starts_at_once() -> None:
    batcher, batches = make_batcher()
    assert await batcher.submit("a", 100, Lane.BULK, "a") == "A"
    assert virtual_time.now_s() == pytest.approx(STEP_S)
    assert batches == [["a"]]


@scenario
async def test_mean_batch_under_load_is_the_greedy_optimum() -> None:
    """200 requests at 200 per second, 100 ms per batch: a batch holds 3 items with `@serve.batch`, and 18 with a greedy queue."""
    batcher, batches = make_batcher(max_items=32)
    names = [f"r{i}" for i in range(200)]
    results = await asyncio.gather(*(submit_at(batcher, i * 0.005, name) for i, name in enumerate(names)))
    assert results == [name.upper() for name in names]
    # The first batch has one item. Each later batch has the 20 items that arrive in 100 ms.
    assert 200 / len(batches) >= 18
    assert virtual_time.now_s() <= 1.0 + 2 * STEP_S


@scenario
async def test_jobs_of_a_lane_share_the_engine() -> None:
    """A job of 3 windows that is submitted after a job of 30 is done after 8 batches at the latest, not after 33."""
    batcher, batches = make_batcher(max_items=1, ageing_s=1000)
    long_job = [submit_at(batcher, 0.0, f"long{n}", job="long") for n in range(30)]
    short_job = [submit_at(batcher, 0.05, f"short{n}", job="short") for n in range(3)]
    await asyncio.gather(*long_job, *short_job)
    order = [name for (name,) in batches]
    assert order.index("short2") <= 7
    assert [name for name in order if name.startswith("long")] == [f"long{n}" for n in range(30)]


@scenario
async def test_an_idle_job_gains_no_credit() -> None:
    batcher, batches = make_batcher(max_items=1, ageing_s=1000)
    await batcher.submit("early", 100, Lane.BULK, "b")
    for n in range(10):
        await batcher.submit(f"a{n}", 100, Lane.BULK, "a")
    first = asyncio.create_task(batcher.submit("running", 100, Lane.BULK, "x"))
    await asyncio.sleep(STEP_S / 2)
    both = [batcher.submit(f"{job}-{n}", 100, Lane.BULK, job) for n in range(4) for job in "ab"]
    await asyncio.gather(first, *both)
    assert {name[0] for (name,) in batches[12:14]} == {"a", "b"}
    assert {name[0] for (name,) in batches[14:16]} == {"a", "b"}


@scenario
async def test_an_isolated_item_runs_alone() -> None:
    batcher, batches = make_batcher()
    names = ["a", "b", "c", "d"]
    await asyncio.gather(*(batcher.submit(name, 100, Lane.BULK, name, is_isolated=name in "bc") for name in names))
    assert sorted(batches) == [["a", "d"], ["b"], ["c"]]


@scenario
async def test_a_batch_with_an_aged_bulk_head_is_filled_with_bulk_work() -> None:
    batcher, batches = make_batcher(max_items=4, ageing_s=1.0)
    bulk = [submit_at(batcher, 0, f"bulk{n}") for n in range(12)]
    interactive = [submit_at(batcher, n * STEP_S / 6, f"i{n}", lane=Lane.INTERACTIVE) for n in range(240)]
    await asyncio.gather(*bulk, *interactive)
    aged = next(batch for batch in batches[12:] if batch[0].startswith("bulk"))
    assert all(name.startswith("bulk") for name in aged)
    assert len(aged) == 4


@scenario
async def test_limits_hold_for_padded_audio() -> None:
    batcher, batches = make_batcher(max_samples=1000, max_items=4)
    sizes = {f"i{n}": 60 + 37 * n % 400 for n in range(60)}
    await asyncio.gather(*(batcher.submit(name, size, Lane.BULK, name) for name, size in sizes.items()))
    assert sum(map(len, batches)) == len(sizes)
    for batch in batches:
        assert len(batch) <= 4
        assert max(sizes[name] for name in batch) * len(batch) <= 1000


@scenario
async def test_an_item_above_the_limit_runs_alone() -> None:
    batcher, batches = make_batcher(max_samples=1000)
    await asyncio.gather(batcher.submit("small", 10, Lane.BULK, "small"), batcher.submit("huge", 5000, Lane.BULK, "huge"))
    assert sorted(batches) == [["huge"], ["small"]]


@scenario
async def test_similar_lengths_go_together() -> None:
    batcher, batches = make_batcher(max_items=3)
    lengths = {"s1": 10, "l1": 1000, "s2": 11, "l2": 1001, "s3": 12, "l3": 1002}
    await asyncio.gather(*(batcher.submit(name, size, Lane.BULK, name) for name, size in lengths.items()))
    assert [sorted(batch) for batch in batches] == [["s1", "s2", "s3"], ["l1", "l2", "l3"]]


@scenario
async def test_lanes_have_priority() -> None:
    batcher, batches = make_batcher(max_items=1)
    first = asyncio.create_task(batcher.submit("running", 100, Lane.BULK, "running"))
    await asyncio.sleep(STEP_S / 2)
    lanes = {"b": Lane.BULK, "i": Lane.INTERACTIVE, "l": Lane.LIVE}
    await asyncio.gather(first, *(batcher.submit(name, 100, lane, name) for name, lane in lanes.items()))
    assert batches == [["running"], ["l"], ["i"], ["b"]]


@scenario
async def test_a_lower_lane_joins_only_where_it_costs_no_padding() -> None:
    batcher, batches = make_batcher()
    first = asyncio.create_task(batcher.submit("running", 100, Lane.BULK, "running"))
    await asyncio.sleep(STEP_S / 2)
    await asyncio.gather(
        first,
        batcher.submit("live", 100, Lane.LIVE, "live"),
        batcher.submit("long bulk", 900, Lane.BULK, "long bulk"),
        batcher.submit("short bulk", 90, Lane.BULK, "short bulk"),
    )
    assert batches == [["running"], ["live", "short bulk"], ["long bulk"]]


@scenario
async def test_bulk_is_not_starved_by_live_work() -> None:
    batcher, _ = make_batcher(max_items=1, ageing_s=1.0)
    flood = [asyncio.create_task(submit_at(batcher, i * STEP_S * 0.9, f"live{i}", lane=Lane.LIVE)) for i in range(60)]
    assert await submit_at(batcher, 0.05, "bulk") == "BULK"
    # The bulk item has aged after 1 s and heads one of the next four batches.
    assert virtual_time.now_s() <= 1.0 + 6 * STEP_S
    assert not all(task.done() for task in flood)
    await asyncio.gather(*flood)


@scenario
async def test_live_work_is_not_delayed_by_aged_bulk() -> None:
    batcher, _ = make_batcher(max_items=1, ageing_s=1.0)
    bulk = [asyncio.create_task(submit_at(batcher, 0.01, f"bulk{i}")) for i in range(100)]
    for at_s in (5.03, 6.03, 7.03):
        await submit_at(batcher, at_s, "live", lane=Lane.LIVE)
        # At most the running batch, one batch of aged work, and its own.
        assert virtual_time.now_s() - at_s <= 3 * STEP_S
    await asyncio.gather(*bulk)


@scenario
async def test_a_cancelled_item_leaves_the_queue() -> None:
    batcher, batches = make_batcher(max_items=1)
    first = asyncio.create_task(batcher.submit("running", 100, Lane.BULK, "running"))
    await asyncio.sleep(STEP_S / 2)
    gone = asyncio.create_task(batcher.submit("gone", 100, Lane.BULK, "gone"))
    await asyncio.sleep(0)
    assert batcher.queued == 1
    gone.cancel()
    await asyncio.wait([gone])
    assert batcher.queued == 0
    await first
    assert batches == [["running"]]


@scenario
async def test_cancelling_a_running_item_leaves_its_batch_running() -> None:
    batcher, _ = make_batcher()
    leaver = asyncio.create_task(batcher.submit("leaver", 100, Lane.BULK, "leaver"))
    stayer = asyncio.create_task(batcher.submit("stayer", 100, Lane.BULK, "stayer"))
    await asyncio.sleep(STEP_S / 2)
    leaver.cancel()
    assert await stayer == "STAYER"
    assert await batcher.submit("next", 100, Lane.BULK, "next") == "NEXT"


@scenario
async def test_one_bad_item_fails_alone() -> None:
    batcher, batches = make_batcher(fail_on="bad")
    names = ["a", "bad", "c", "d"]
    results = await asyncio.gather(*(batcher.submit(name, 100, Lane.BULK, name) for name in names), return_exceptions=True)
    assert [results[0], *results[2:]] == ["A", "C", "D"]
    assert isinstance(results[1], ValueError)
    assert batches[0] == names


@scenario
async def test_a_batch_that_is_repeated_item_by_item_counts_once() -> None:
    reports: list[BatchReport] = []
    batcher, batches = make_batcher(fail_on="bad", on_batch=reports.append)
    await asyncio.gather(*(batcher.submit(name, 100, Lane.BULK, name) for name in ("a", "bad", "c")), return_exceptions=True)
    assert [len(batch) for batch in batches] == [3, 1, 1, 1]
    assert reports == [BatchReport(((Lane.BULK, 0.0),) * 3, samples=300, padded_samples=300)]
    assert (batcher.stats.batches, batcher.stats.items, batcher.stats.samples) == (1, 3, 300)


@scenario
async def test_a_broken_engine_fails_the_whole_batch_at_once() -> None:
    calls = 0

    async def process(items: list[str]) -> list[str]:
        nonlocal calls
        calls += 1
        raise EngineBroken("the GPU fell off the bus")

    limits = BatchLimits(max_samples=1000, max_live_samples=1000, max_items=8, ageing_s=1.0)
    batcher: Batcher[str, str] = Batcher(process, limits, now_s=virtual_time.now_s)
    results = await asyncio.gather(*(batcher.submit(name, 10, Lane.LIVE, name) for name in "abc"), return_exceptions=True)
    assert [type(result) for result in results] == [EngineBroken] * 3
    assert calls == 1


def make_failing_batcher(failures: dict[str, Exception]) -> tuple[Batcher[str, str], list[int]]:
    """A batcher of batches of two whose engine raises the failure of an item, and a list that grows when it counts as failing."""
    failing: list[int] = []

    async def process(items: list[str]) -> list[str]:
        await asyncio.sleep(STEP_S)
        for item in items:
            if item in failures:
                raise failures[item]
        return items

    limits = BatchLimits(max_samples=10_000, max_live_samples=10_000, max_items=2, ageing_s=5.0)
    return Batcher(process, limits, on_failing=lambda: failing.append(1), now_s=virtual_time.now_s), failing


async def submit_all(batcher: Batcher[str, str], items: str) -> list[str | BaseException]:
    return await asyncio.gather(*(batcher.submit(item, 100, Lane.BULK, item) for item in items), return_exceptions=True)


@scenario
async def test_an_engine_that_fails_every_batch_is_reported() -> None:
    batcher, failing = make_failing_batcher({"x": EngineError("failed")})
    await submit_all(batcher, "xx" * (MAX_FAILED_BATCHES - 1))
    assert not failing
    await submit_all(batcher, "xx")
    assert failing == [1]


@pytest.mark.parametrize("between", ["a", "ax", "r"])
def test_an_engine_with_results_between_failures_is_not(between: str) -> None:
    """`a` is recognised, `x` fails, `r` is a request that is at fault itself; the latter does not count."""

    async def run() -> None:
        batcher, failing = make_failing_batcher({"x": EngineError("failed"), "r": RequestError("at fault")})
        for _ in range(MAX_FAILED_BATCHES):
            await submit_all(batcher, "r" if between == "r" else "xx")
            await submit_all(batcher, between)
        assert not failing

    virtual_time.run(run())


@scenario
async def test_work_that_nobody_waits_for_says_nothing_of_the_engine() -> None:
    batcher, failing = make_failing_batcher({"x": EngineError("failed")})
    for _ in range(2 * MAX_FAILED_BATCHES):
        waiting = asyncio.create_task(batcher.submit("x", 100, Lane.BULK, "x"))
        await asyncio.sleep(STEP_S / 2)
        waiting.cancel()
        await asyncio.sleep(2 * STEP_S)
    assert not failing


@scenario
async def test_stats_count_padding() -> None:
    batcher, _ = make_batcher()
    await asyncio.gather(batcher.submit("a", 100, Lane.BULK, "a"), batcher.submit("b", 300, Lane.BULK, "b"))
    stats = batcher.stats
    assert (stats.batches, stats.items, stats.largest_batch) == (1, 2, 2)
    assert (stats.samples, stats.padded_samples) == (400, 600)


@scenario
async def test_batches_are_smaller_while_there_are_live_streams() -> None:
    batcher, batches = make_batcher(max_samples=800, max_live_samples=250)
    await batcher.submit("live", 100, Lane.LIVE, "stream")
    names = [f"bulk{i}" for i in range(20)]
    waiting = [asyncio.ensure_future(batcher.submit(name, 100, Lane.BULK, "file")) for name in names]
    # The stream is gone after LIVE_S: 19 batches of 0.1 s would take longer.
    await asyncio.gather(*waiting, submit_at(batcher, 0.15, "last", lane=Lane.LIVE))
    assert [len(batch) for batch in batches[:3]] == [1, 2, 2]
    assert batches[2] == ["last", "bulk2"]
    more = [asyncio.ensure_future(batcher.submit(name, 100, Lane.BULK, "file")) for name in names]
    await asyncio.sleep(0.05)
    assert len(batches[-1]) == 2
    await asyncio.gather(*more)
    await asyncio.sleep(LIVE_S)
    await asyncio.gather(*(batcher.submit(name, 100, Lane.BULK, "file") for name in names[:8]))
    assert len(batches[-1]) == 8


@scenario
async def test_a_live_window_longer_than_the_limit_runs_alone() -> None:
    batcher, batches = make_batcher(max_live_samples=0)
    await asyncio.gather(*(batcher.submit(name, 100, Lane.LIVE, name) for name in "ab"))
    assert batches == [["a"], ["b"]]


@scenario
async def test_every_batch_is_reported_at_its_start() -> None:
    reports: list[BatchReport] = []

    async def process(items: list[str]) -> list[str]:
        assert sum(len(report.waits) for report in reports) >= len(items)
        await asyncio.sleep(STEP_S)
        return items

    limits = BatchLimits(max_samples=1_000, max_live_samples=1_000, max_items=8, ageing_s=5.0)
    batcher: Batcher[str, str] = Batcher(process, limits, on_batch=reports.append, now_s=virtual_time.now_s)
    await asyncio.gather(
        submit_at(batcher, 0, "a", 100),
        submit_at(batcher, STEP_S / 4, "b", 300, Lane.INTERACTIVE),
        submit_at(batcher, STEP_S / 2, "c", 200, Lane.BULK),
    )
    assert [(report.samples, report.padded_samples) for report in reports] == [(100, 100), (500, 600)]
    assert [[lane for lane, _ in report.waits] for report in reports] == [[Lane.BULK], [Lane.INTERACTIVE, Lane.BULK]]
    assert [wait_s for report in reports for _, wait_s in report.waits] == pytest.approx([0, STEP_S * 3 / 4, STEP_S / 2])
