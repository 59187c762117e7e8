"""The end of tasks that nobody waits for any more."""

import asyncio
from collections.abc import AsyncGenerator, Iterable
from contextlib import AsyncExitStack
from typing import Any


async def stop(*tasks: asyncio.Future[Any] | None, closing: Iterable[AsyncGenerator[Any, None]] = ()) -> None:
    """Cancel the tasks that still run, wait for their end, and then close the generators, which the tasks may be reading, the
    last one first.

    If the caller is cancelled meanwhile, it is so once the tasks have ended: passed on, its cancellation would interrupt the
    clean-up that the first one began. So what a generator waits for when it is closed has to be a `stop`, too.
    """
    async with AsyncExitStack() as generators:
        for generator in closing:
            generators.push_async_callback(generator.aclose)
        running = [task for task in tasks if task is not None]
        for task in running:
            task.cancel()
        ending = asyncio.gather(*running, return_exceptions=True)
        interruption: asyncio.CancelledError | None = None
        while not ending.done():
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError as error:
                interruption = error
        if interruption is not None:
            raise interruption
