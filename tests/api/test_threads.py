"""Work in a thread: its result, its failure, and its end when nobody waits for it."""

import asyncio
import threading

import pytest

from serve_app.api.threads import Checkpoint, run_in_thread


async def test_the_result_and_the_failure() -> None:
    assert await run_in_thread(lambda checkpoint: 7) == 7
    with pytest.raises(ZeroDivisionError):
        await run_in_thread(lambda checkpoint: 1 // 0)


async def test_it_ends_when_its_task_is_cancelled() -> None:
    has_begun, has_ended = threading.Event(), threading.Event()

    def work(checkpoint: Checkpoint) -> None:
        has_begun.set()
        try:
            while True:
                checkpoint()
        finally:
            has_ended.set()

    task = asyncio.create_task(run_in_thread(work))
    await asyncio.to_thread(has_begun.wait)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert has_ended.is_set()
