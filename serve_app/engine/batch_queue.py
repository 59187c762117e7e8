"""A replica's queue: windows of many requests in, batches by seconds of audio out.

`@serve.batch` freezes a batch at each timeout even while the engine is busy, so most batches stay small. This batcher forms a
batch only at the moment the engine is free, from everything that waits then; an idle engine starts at once. Lanes are strict, but
work that has waited `ageing_s` heads at least every fourth batch: bulk is never starved, and never in the way of live work for
long, however much of it there is. Within a lane, jobs take turns by the audio they have had: a long file does not stand before a
short one that came later.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from serve_app.errors import EngineBroken
from serve_app.window import Lane

AGED_EVERY = 4
"""One batch of so many belongs to what has waited longest."""

LENGTH_STEPS = 8
"""Lengths that differ by less than one in so many count as alike."""

Item = TypeVar("Item")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class BatchLimits:
    """A batch holds at most `max_items`, and at most `max_samples` counted padded: its longest item times its number of items."""

    max_samples: int
    max_items: int
    ageing_s: float


@dataclass(frozen=True, slots=True)
class BatcherStats:
    """Totals since the start."""

    batches: int = 0
    items: int = 0
    samples: int = 0
    padded_samples: int = 0
    largest_batch: int = 0


@dataclass(slots=True, eq=False)
class _Waiting(Generic[Item, Result]):
    item: Item
    samples: int
    lane: Lane
    turn: int
    """Samples that its job will have had when it is this item's turn: start tags of start-time fair queueing (Goyal, Vin and
    Cheng, 1996)."""
    is_isolated: bool
    since_s: float
    done: "asyncio.Future[Result]" = field(repr=False)


class Batcher(Generic[Item, Result]):
    """Runs `process` on one batch at a time. Belongs to one event loop."""

    def __init__(
        self,
        process: Callable[[list[Item]], Awaitable[list[Result]]],
        limits: BatchLimits,
        *,
        now_s: Callable[[], float] = time.monotonic,
    ) -> None:
        self._process = process
        self._limits = limits
        self._now_s = now_s
        self._queue: list[_Waiting[Item, Result]] = []
        self._worker: asyncio.Task[None] | None = None
        self._batches_by_lane = 0
        self._turn = 0
        self._next_turns: dict[str, int] = {}
        self.stats = BatcherStats()

    @property
    def queued(self) -> int:
        return len(self._queue)

    async def submit(self, item: Item, samples: int, lane: Lane, job: str, *, is_isolated: bool = False) -> Result:
        """Wait for the result of one item of that many samples, if need be in a batch without others.

        Cancelling the wait takes a queued item out of the queue.
        """
        turn = max(self._turn, self._next_turns.get(job, 0))
        self._next_turns[job] = turn + samples
        done: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        waiting: _Waiting[Item, Result] = _Waiting(item, samples, lane, turn, is_isolated, self._now_s(), done)
        self._queue.append(waiting)
        if self._worker is None:
            self._worker = asyncio.create_task(self._work())
        try:
            return await waiting.done
        finally:
            if waiting in self._queue:
                self._queue.remove(waiting)

    async def _work(self) -> None:
        try:
            # Everything that is being submitted in this turn of the loop joins the first batch.
            await asyncio.sleep(0)
            while self._queue:
                await self._run(self._take_batch())
        finally:
            self._worker = None

    def _take_batch(self) -> list[_Waiting[Item, Result]]:
        """The head of the queue, then what fits beside it: its own lane by likeness of length, then others that cost no more
        padding."""
        head = self._head()
        others = [] if head.is_isolated else [w for w in self._queue if w is not head and not w.is_isolated]
        others.sort(key=lambda w: (w.lane != head.lane, w.lane, _unlikeness(w.samples, head.samples), w.turn))
        batch, longest = [head], head.samples
        for waiting in others:
            if len(batch) == self._limits.max_items:
                break
            grown = max(longest, waiting.samples)
            if grown > longest and waiting.lane > head.lane:
                continue
            if grown * (len(batch) + 1) <= self._limits.max_samples:
                batch.append(waiting)
                longest = grown
        chosen = set(map(id, batch))
        self._queue = [w for w in self._queue if id(w) not in chosen]
        self._turn = max(self._turn, head.turn)
        self._next_turns = {job: turn for job, turn in self._next_turns.items() if turn > self._turn}
        return batch

    def _head(self) -> _Waiting[Item, Result]:
        """The highest lane's job that has had least; every so often the oldest of all, if it has waited long."""
        oldest = min(self._queue, key=lambda w: w.since_s)
        is_aged = self._now_s() - oldest.since_s >= self._limits.ageing_s
        if is_aged and self._batches_by_lane >= AGED_EVERY - 1:
            self._batches_by_lane = 0
            return oldest
        self._batches_by_lane += 1
        return min(self._queue, key=lambda w: (w.lane, w.turn))

    async def _run(self, batch: list[_Waiting[Item, Result]]) -> None:
        """Process a batch; if it fails as a whole, process its items one by one so that only the bad ones fail."""
        self._count(batch)
        try:
            results = await self._process([w.item for w in batch])
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

    def _count(self, batch: list[_Waiting[Item, Result]]) -> None:
        sizes = [w.samples for w in batch]
        self.stats = BatcherStats(
            batches=self.stats.batches + 1,
            items=self.stats.items + len(batch),
            samples=self.stats.samples + sum(sizes),
            padded_samples=self.stats.padded_samples + max(sizes) * len(sizes),
            largest_batch=max(self.stats.largest_batch, len(batch)),
        )


def _unlikeness(samples: int, other_samples: int) -> int:
    return LENGTH_STEPS * abs(samples - other_samples) // max(samples, other_samples, 1)


def _fail(waiting: _Waiting[Item, Result], error: Exception) -> None:
    if not waiting.done.done():
        waiting.done.set_exception(error)
