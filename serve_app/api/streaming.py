"""A transcription as server-sent events, in OpenAI's shape: text as soon as it is final, while later audio is still at work."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator
from contextlib import aclosing

from fastapi.responses import Response
from fastapi.sse import EventSourceResponse, format_sse_event

from serve_app.api.errors import describe
from serve_app.api.schemas import ErrorBody, TokenUsage, TranscriptDelta, TranscriptDone
from serve_app.errors import EngineError, SpeechError
from serve_app.pipeline import Done, Event, SegmentFinal
from serve_app.transcript import FRAME_SAMPLES, SAMPLE_RATE

log = logging.getLogger("ray.serve")

PING_S = 15.0
"""After so much silence a comment is sent, lest something on the way takes the connection for dead."""

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

Message = TranscriptDelta | TranscriptDone | ErrorBody


async def stream(events: AsyncGenerator[Event, None]) -> Response:
    """The response that sends `events` as they come; raises the SpeechError of a failure before the first of them."""
    messages = _messages(events)
    try:
        first = await anext(messages)
    except BaseException:
        await messages.aclose()
        raise
    return EventSourceResponse(_encoded(first, messages), headers=HEADERS)


async def _messages(events: AsyncGenerator[Event, None]) -> AsyncGenerator[Message, None]:
    text = ""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, SegmentFinal):
                delta = f" {event.segment.text}" if text else event.segment.text
                text += delta
                yield TranscriptDelta(delta=delta)
            elif isinstance(event, Done):
                yield TranscriptDone(text=text, usage=_usage(event))


def _usage(done: Done) -> TokenUsage:
    frames = math.ceil(done.duration_s * SAMPLE_RATE / FRAME_SAMPLES)
    tokens = sum(len(segment.token_ids) for segment in done.segments)
    return TokenUsage(input_tokens=frames, output_tokens=tokens, total_tokens=frames + tokens, seconds=round(done.duration_s, 3))


async def _encoded(first: Message, messages: AsyncGenerator[Message, None]) -> AsyncGenerator[bytes, None]:
    following: asyncio.Task[Message | None] | None = None
    try:
        yield _event(first)
        while True:
            following = asyncio.create_task(_next(messages))
            while not (await asyncio.wait([following], timeout=PING_S))[0]:
                yield format_sse_event(comment="ping")
            message = following.result()
            if message is None:
                return
            yield _event(message)
    finally:
        if following is not None and not following.done():
            following.cancel()
            await asyncio.wait([following])
        await messages.aclose()


async def _next(messages: AsyncGenerator[Message, None]) -> Message | None:
    """The next message, None at the end. A failure is a message too: the status has been sent."""
    try:
        return await anext(messages, None)
    except SpeechError as error:
        return describe(error)
    except Exception:
        log.exception("a stream failed")
        return describe(EngineError("The server failed; its log says how."))


def _event(message: Message) -> bytes:
    return format_sse_event(event="error" if isinstance(message, ErrorBody) else None, data_str=message.model_dump_json())
