"""Blocking work in a thread, which ends when nobody waits for it any more."""

import asyncio
import threading
from collections.abc import Callable
from typing import TypeVar

Result = TypeVar("Result")
Checkpoint = Callable[[], None]
"""Work calls it often; it raises CancelledError once the work has no purpose any more."""


async def run_in_thread(work: Callable[[Checkpoint], Result]) -> Result:
    """The result of `work`, which runs in a thread. If this task is cancelled, the thread ends at its next checkpoint."""
    is_cancelled = threading.Event()

    def checkpoint() -> None:
        if is_cancelled.is_set():
            raise asyncio.CancelledError

    try:
        return await asyncio.to_thread(work, checkpoint)
    finally:
        is_cancelled.set()
