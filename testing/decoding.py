"""Windows of audio that is in memory, as the decoder processes make them."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from serve_app.audio.dither import without_zeros
from serve_app.chunking import Planner
from serve_app.window import Samples, Window


async def windows_of(blocks: AsyncGenerator[Samples, None], window_s: float, overlap_s: float) -> AsyncGenerator[Window, None]:
    """Cut int16 [samples] blocks into windows, without digital silence."""
    planner = Planner(window_s, overlap_s)
    async with aclosing(blocks):
        async for block in blocks:
            for window in planner.push(block):
                yield without_zeros(window)
    for window in planner.finish():
        yield without_zeros(window)
