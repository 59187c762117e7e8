import asyncio
from collections.abc import AsyncGenerator

import pytest

from serve_app.tasks import stop


class Worker:
    """A generator, and a task that reads it and takes a while to end."""

    def __init__(self) -> None:
        self.ended: list[str] = []

    async def numbers(self) -> AsyncGenerator[int, None]:
        try:
            yield 0
        finally:
            self.ended.append("generator")

    async def read(self, numbers: AsyncGenerator[int, None]) -> None:
        try:
            await anext(numbers)
            await asyncio.Future()
        finally:
            await steps(3)
            self.ended.append("task")


async def steps(number: int) -> None:
    for _ in range(number):
        await asyncio.sleep(0)


async def test_tasks_end_before_the_generators_they_read() -> None:
    worker = Worker()
    numbers = worker.numbers()
    task = asyncio.ensure_future(worker.read(numbers))
    await steps(2)
    await stop(None, task, closing=[numbers])
    assert task.cancelled()
    assert worker.ended == ["task", "generator"]


@pytest.mark.parametrize("when", range(1, 8))
async def test_a_cancellation_waits_for_the_clean_up(when: int) -> None:
    worker = Worker()
    numbers = worker.numbers()
    task = asyncio.ensure_future(worker.read(numbers))
    await steps(2)
    stopping = asyncio.ensure_future(stop(task, closing=[numbers]))
    await steps(when)
    is_early = not stopping.done()
    stopping.cancel()
    await asyncio.wait([stopping])
    assert stopping.cancelled() == is_early
    assert worker.ended == ["task", "generator"]


@pytest.mark.parametrize("again", range(1, 6))
async def test_so_does_the_next_one_and_the_clean_up_of_a_generator_that_reads_another(again: int) -> None:
    worker = Worker()

    async def doubled(numbers: AsyncGenerator[int, None]) -> AsyncGenerator[int, None]:
        reading = asyncio.ensure_future(worker.read(numbers))
        try:
            yield 0
        finally:
            await stop(reading, closing=[numbers])

    numbers = worker.numbers()
    outer = doubled(numbers)
    await anext(outer)
    await steps(2)
    stopping = asyncio.ensure_future(stop(closing=[numbers, outer]))
    await steps(1)
    stopping.cancel()
    await steps(again)
    stopping.cancel()
    await asyncio.wait([stopping])
    assert stopping.cancelled()
    assert worker.ended == ["task", "generator"]


async def test_failures_are_of_no_interest() -> None:
    async def fail() -> None:
        raise ValueError

    task = asyncio.ensure_future(fail())
    await steps(1)
    await stop(task)
    assert task.done()
