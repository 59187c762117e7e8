"""The end of tasks that nobody waits for any more."""

import asyncio
from typing import Any


async def stop(*tasks: asyncio.Future[Any] | None) -> None:
    """Cancel the tasks that still run, and wait for their end."""
    running = [task for task in tasks if task is not None]
    for task in running:
        task.cancel()
    await asyncio.gather(*running, return_exceptions=True)
