"""A transcription as server-sent events, in OpenAI's shape: text as soon as it is final, while later audio is still at work."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any

from fastapi.responses import Response
from fastapi.sse import EventSourceResponse, format_sse_event

from serve_app.api.errors import describe
from serve_app.api.schemas import ErrorBody, LogProbability, TokenUsage, TranscriptDelta, TranscriptDone, TranscriptProgress
from serve_app.errors import UNFORESEEN, EngineError, SpeechError
from serve_app.events import Done, Event, Progress, SegmentFinal
from serve_app.output.export import to_logprobs
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE

log = logging.getLogger("ray.serve")

PING_S = 15.0
"""After so much silence a comment is sent, lest something on the way takes the connection for dead."""

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}

Message = TranscriptDelta | TranscriptProgress | TranscriptDone | ErrorBody


@dataclass(frozen=True, slots=True)
class Extras:
    """What a stream has beyond text."""

    logprobs: bool = False
    length_s: Callable[[], float | None] | None = None
    """Tells, for progress, how long the audio is, as far as is known; None for a stream without progress."""
    content: Callable[[Done], str | dict[str, Any]] | None = None
    """Makes the answer that the last event carries, in the format asked for."""


async def stream(events: AsyncGenerator[Event, None], extras: Extras = Extras()) -> Response:
    """The response that sends `events` as they come; raises the SpeechError of a failure before the first of them."""
    messages = _messages(events, extras)
    try:
        first = await anext(messages)
    except BaseException:
        await messages.aclose()
        raise
    return EventSourceResponse(_encoded(first, messages), headers=HEADERS)


async def _messages(events: AsyncGenerator[Event, None], extras: Extras) -> AsyncGenerator[Message, None]:
    text = ""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, SegmentFinal):
                delta = f" {event.segment.text}" if text else event.segment.text
                text += delta
                yield TranscriptDelta(delta=delta, logprobs=_logprobs(event.segment.tokens, extras))
            elif isinstance(event, Progress) and extras.length_s is not None:
                yield TranscriptProgress(
                    audio_s=round(event.done_s, 3),
                    total_s=extras.length_s(),
                    windows_done=event.windows_done,
                    windows_planned=event.windows_planned,
                )
            elif isinstance(event, Done):
                # Of hours of speech it takes long to make, in which other requests go on.
                yield await asyncio.to_thread(_done, event, text, extras)


def _done(event: Done, text: str, extras: Extras) -> TranscriptDone:
    tokens = tuple(token for segment in event.segments for token in segment.tokens)
    return TranscriptDone(
        text=text,
        usage=_usage(event, len(tokens)),
        logprobs=_logprobs(tokens, extras),
        content=extras.content(event) if extras.content is not None else None,
    )


def _logprobs(tokens: tuple[Token, ...], extras: Extras) -> list[LogProbability] | None:
    return [LogProbability(**entry) for entry in to_logprobs(tokens)] if extras.logprobs else None


def _usage(done: Done, tokens: int) -> TokenUsage:
    frames = math.ceil(done.duration_s * SAMPLE_RATE / FRAME_SAMPLES)
    return TokenUsage(input_tokens=frames, output_tokens=tokens, total_tokens=frames + tokens, seconds=math.ceil(done.duration_s))


async def _encoded(first: Message, messages: AsyncGenerator[Message, None]) -> AsyncGenerator[bytes, None]:
    following: asyncio.Task[Message | None] | None = None
    try:
        yield await asyncio.to_thread(_event, first)
        while True:
            following = asyncio.create_task(_next(messages))
            while not (await asyncio.wait([following], timeout=PING_S))[0]:
                yield format_sse_event(comment="ping")
            message = following.result()
            if message is None:
                return
            yield await asyncio.to_thread(_event, message)
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
        return describe(EngineError(UNFORESEEN))


def _event(message: Message) -> bytes:
    if isinstance(message, ErrorBody):
        return format_sse_event(event="error", data_str=message.model_dump_json())
    return format_sse_event(data_str=message.model_dump_json(exclude=message.absent))
