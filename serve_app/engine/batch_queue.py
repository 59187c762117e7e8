"""A replica's batch queue: takes windows of many requests, forms batches limited by padded audio.

`@serve.batch` closes a batch at each timeout even while the engine is busy, so most of its batches stay small. This queue forms
a batch only when the engine is free, from all items queued at that moment. An idle engine starts at once.

Lanes have strict priority, with one exception: once the oldest item has waited `ageing_s`, at most one batch in four starts with
it. So bulk work never starves, and never delays live work for long. Within a lane, start-time fair queueing shares the engine
between jobs by samples of audio: a short file does not wait for all windows of a long one that came earlier.

A batch has two stages, so that a GPU need not wait for the first one: while a batch runs, the next one is formed and prepared if
the queue holds enough for a full batch. It still goes after items of a more urgent lane that arrive meanwhile.
"""

import asyncio
import math
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from serve_app.errors import EngineBroken, RequestError
from serve_app.window import Lane

AGED_EVERY = 4
"""At most one batch in this many starts with the oldest item because it has waited `ageing_s`."""

MAX_FAILED_BATCHES = 5
"""After so many batches in a row in which every item failed, the engine counts as broken."""

LIVE_S = 10.0
"""Time after a live item in which the next one is expected, seconds. In silence, a live stream sends one every 8 s."""

LENGTH_STEPS = 8
"""Lengths are compared in steps of 1/8 of the longer one."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """Limits of one batch, and the waiting time after which an item counts as aged. A single item may exceed `max_samples`."""

    max_samples: int
    """Padded audio per batch: samples of the longest item times the number of items."""
    max_live_samples: int
    """The same while there are live streams, whose windows wait for the batch that runs."""
    max_items: int
    ageing_s: float


@dataclass(frozen=True, slots=True)
class BatcherStats:
    """Totals since the start of the replica."""

    batches: int = 0
    items: int = 0
    samples: int = 0
    padded_samples: int = 0
    """Samples including padding: for each batch its longest item times its number of items."""
    largest_batch: int = 0
    """Items in the largest batch so far."""


@dataclass(frozen=True, slots=True)
class BatchReport:
    """One batch, at its start."""

    waits: tuple[tuple[Lane, float], ...]
    """Of each item: its lane, and how long it was queued, seconds."""
    samples: int
    padded_samples: int


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    samples: int
    lane: Lane
    start_tag: int
    """Start tag of start-time fair queueing (Goyal, Vin and Cheng, 1996): virtual time, in samples, at
    which this item may start. It is the end of the job's previous item, or the current virtual time if that is later."""
    is_isolated: bool
    queued_at_s: float
    done: "asyncio.Future[Result]" = field(repr=False)


@dataclass(slots=True, eq=False)
class _Batch(Generic[Item, Result]):
    items: list[_Waiting[Item, Result]]
    preparing: "asyncio.Future[Any] | None" = None
    """The batch as the first stage leaves it; None: not started."""

    @property
    def lane(self) -> Lane:
        """Of its head."""
        return self.items[0].lane


async def _as_it_is(items: list[Item]) -> list[Item]:
    return items


class Batcher(Generic[Item, Result]):
    """Runs `process` on one batch at a time; it returns one result per item, in order. Use it from one event loop only.

    `process` gets what `prepare` returns for the items of the batch, by default the items. With `prepares_ahead`, that may be
    called while another batch is processed. `on_failing` is called after MAX_FAILED_BATCHES in a row without a result, `on_batch`
    at the start of each batch. A batch that fails and is repeated item by item counts once, there and in `stats`.
    """

    def __init__(
        self,
        process: Callable[[Any], Awaitable[list[Result]]],
        limits: BatchLimits,
        *,
        prepare: Callable[[list[Item]], Awaitable[Any]] = _as_it_is,
        prepares_ahead: bool = False,
        on_failing: Callable[[], None] = lambda: None,
        on_batch: Callable[[BatchReport], None] = lambda report: None,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._process = process
        self._prepare = prepare
        self._prepares_ahead = prepares_ahead
        self._ahead: _Batch[Item, Result] | None = None
        self._limits = limits
        self._on_failing = on_failing
        self._on_batch = on_batch
        self._failed_batches = 0  # in a row
        self._now_s = now_s
        self._queue: list[_Waiting[Item, Result]] = []
        self._worker: asyncio.Task[None] | None = None
        self._heads_by_lane = 0
        self._live_until_s = -math.inf
        self._virtual_time = 0  # the highest start tag among the heads of the batches so far
        self._next_start_tags: dict[str, int] = {}
        self.stats = BatcherStats()

    @property
    def queued(self) -> int:
        return len(self._queue) + (len(self._ahead.items) if self._ahead is not None else 0)

    async def submit(self, item: Item, samples: int, lane: Lane, job: str, *, is_isolated: bool = False) -> Result:
        """Queue one item with `samples` of audio and return its result. With `is_isolated` it runs in a batch of its own.

        Cancelling the call removes the item from the queue; a batch that was formed already continues. Raises whatever `process`
        raised for this item.
        """
        if lane == Lane.LIVE:
            self._live_until_s = self._now_s() + LIVE_S
        start_tag = max(self._virtual_time, self._next_start_tags.get(job, 0))
        self._next_start_tags[job] = start_tag + samples
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        waiting: _Waiting[Item, Result] = _Waiting(item, samples, lane, start_tag, is_isolated, self._now_s(), done)
        self._queue.append(waiting)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        self._prepare_ahead()
        try:
            return await waiting.done
        finally:
            if waiting in self._queue:
                self._queue.remove(waiting)

    async def _work(self) -> None:
        try:
            # Everything submitted in this iteration of the event loop joins the first batch.
            await asyncio.sleep(0)
            while self._queue or self._ahead is not None:
                batch = self._next_batch()
                self._prepare_ahead()
                self._count(batch.items)
                await self._run(batch.items, batch.preparing)
                self._count_failure(batch.items)
        finally:
            self._worker = None

    def _next_batch(self) -> _Batch[Item, Result]:
        """The batch that was formed ahead. More urgent items go before it, as before an item in the queue."""
        ahead = self._ahead
        if ahead is None:
            return _Batch(self._take_batch())
        if self._queue and min(waiting.lane for waiting in self._queue) < ahead.lane:
            if self._aged(ahead.items) is None:
                return _Batch(self._take_batch())
            self._heads_by_lane = 0
        self._ahead = None
        return ahead

    def _prepare_ahead(self) -> None:
        """Form the next batch early, if it is full already, so that it loses nothing but the items that arrive from now on."""
        if not self._prepares_ahead or self._ahead is not None or not self._queue:
            return
        items = self._batch_with(self._head())
        one_more = max(w.samples for w in items) * (len(items) + 1)
        if len(items) == self._limits.max_items or one_more > self._max_samples():
            items = self._take_batch()
            self._ahead = _Batch(items, asyncio.ensure_future(self._prepare([waiting.item for waiting in items])))

    def _take_batch(self) -> list[_Waiting[Item, Result]]:
        """Remove the next batch from the queue."""
        head = self._head()
        self._heads_by_lane = 0 if head is self._aged(self._queue) else self._heads_by_lane + 1
        batch = self._batch_with(head)
        chosen = set(map(id, batch))
        self._queue = [w for w in self._queue if id(w) not in chosen]
        self._virtual_time = max(self._virtual_time, head.start_tag)
        self._next_start_tags = {job: tag for job, tag in self._next_start_tags.items() if tag > self._virtual_time}
        return batch

    def _batch_with(self, head: _Waiting[Item, Result]) -> list[_Waiting[Item, Result]]:
        """An item of the queue and those that fit into a batch with it.

        Items of the head's lane come first, the nearest lengths before others. Then come the other lanes, the most urgent first;
        an item of a less urgent lane is added only if it is no longer than the batch is padded already.
        """
        others = [] if head.is_isolated else [w for w in self._queue if w is not head and not w.is_isolated]
        others.sort(key=lambda w: (w.lane != head.lane, w.lane, _length_distance(w.samples, head.samples), w.start_tag))
        batch, max_samples = [head], head.samples
        for waiting in others:
            if len(batch) == self._limits.max_items:
                break
            padded_to = max(max_samples, waiting.samples)
            if padded_to > max_samples and waiting.lane > head.lane:
                continue
            if padded_to * (len(batch) + 1) <= self._max_samples():
                batch.append(waiting)
                max_samples = padded_to
        return batch

    def _max_samples(self) -> int:
        is_live = self._now_s() < self._live_until_s or any(w.lane == Lane.LIVE for w in self._queue)
        return self._limits.max_live_samples if is_live else self._limits.max_samples

    def _head(self) -> _Waiting[Item, Result]:
        """The item that the next batch starts with: the one with the lowest start tag in the most urgent lane, or the oldest item
        if that has aged and at least AGED_EVERY - 1 heads in a row were chosen by lane."""
        return self._aged(self._queue) or min(self._queue, key=lambda w: (w.lane, w.start_tag))

    def _aged(self, items: list[_Waiting[Item, Result]]) -> _Waiting[Item, Result] | None:
        """The oldest item, if it is its turn because it has waited for so long."""
        oldest = min(items, key=lambda w: w.queued_at_s)
        is_aged = self._now_s() - oldest.queued_at_s >= self._limits.ageing_s
        return oldest if is_aged and self._heads_by_lane >= AGED_EVERY - 1 else None

    async def _run(self, batch: list[_Waiting[Item, Result]], preparing: "asyncio.Future[Any] | None" = None) -> None:
        """Prepare a batch unless that was started, and process it. If it fails, do so with its items one by one, so that only the
        bad ones fail. EngineBroken fails all."""
        try:
            results = await self._process(await (preparing or self._prepare([w.item for w in batch])))
        except EngineBroken as error:
            for waiting in batch:
                _fail(waiting, error)
        except Exception as error:
            if len(batch) == 1:
                _fail(batch[0], error)
                return
            for waiting in batch:
                if not waiting.done.done():
                    await self._run([waiting])
        else:
            for waiting, result in zip(batch, results, strict=True):
                if not waiting.done.done():
                    waiting.done.set_result(result)

    def _count_failure(self, batch: list[_Waiting[Item, Result]]) -> None:
        """Count a batch that failed as a whole. Items that were cancelled, or at fault themselves, say nothing of the engine."""
        errors = [w.done.exception() for w in batch if not w.done.cancelled()]
        errors = [error for error in errors if not isinstance(error, RequestError)]
        if not errors:
            return
        self._failed_batches = self._failed_batches + 1 if all(errors) else 0
        if self._failed_batches == MAX_FAILED_BATCHES:
            self._on_failing()

    def _count(self, batch: list[_Waiting[Item, Result]]) -> None:
        sizes, now_s = [w.samples for w in batch], self._now_s()
        waits = tuple((w.lane, now_s - w.queued_at_s) for w in batch)
        report = BatchReport(waits, samples=sum(sizes), padded_samples=max(sizes) * len(sizes))
        self._on_batch(report)
        self.stats = BatcherStats(
            batches=self.stats.batches + 1,
            items=self.stats.items + len(batch),
            samples=self.stats.samples + report.samples,
            padded_samples=self.stats.padded_samples + report.padded_samples,
            largest_batch=max(self.stats.largest_batch, len(batch)),
        )


def _length_distance(samples: int, other_samples: int) -> int:
    """Difference of two lengths in steps of 1/LENGTH_STEPS of the longer one, rounded down."""
    return LENGTH_STEPS * abs(samples - other_samples) // max(samples, other_samples, 1)


def _fail(waiting: _Waiting[Item, Result], error: Exception) -> None:
    if not waiting.done.done():
        waiting.done.set_exception(error)
