"""Blocking work in a thread, which ends when nobody waits for it any more."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
Checkpoint = Callable[[], None]
"""Work calls it often; it raises CancelledError once the work has no purpose any more."""


async def run_in_thread(work: Callable[[Checkpoint], Result]) -> Result:
    """The result of `work`, which runs in a thread.

    If this task is cancelled, the thread ends at its next checkpoint, and the task waits for that: whoever limits how many tasks
    work at once also limits the threads.
    """
    is_cancelled = threading.Event()

    def checkpoint() -> None:
        if is_cancelled.is_set():
            raise asyncio.CancelledError

    working = asyncio.ensure_future(asyncio.to_thread(work, checkpoint))
    try:
        return await asyncio.shield(working)
    finally:
        is_cancelled.set()
        if not working.done():
            await asyncio.wait([working])
