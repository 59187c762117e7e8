"""A transcription as OpenAI's server-sent events: text is sent once it is final, while later audio is still in progress."""

import asyncio
import logging
import math
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import Any, TypeVar

from fastapi.responses import Response
from fastapi.sse import EventSourceResponse, format_sse_event
from starlette.types import Receive, Scope, Send

from serve_app.api.errors import count_failure, error_body
from serve_app.api.schemas import (
    ErrorBody,
    LogProbability,
    TokenUsage,
    TranscriptDelta,
    TranscriptDone,
    TranscriptProgress,
    TranscriptSegment,
)
from serve_app.errors import UNFORESEEN, EngineError, SpeechError
from serve_app.events import Done, Event, Progress, SegmentFinal
from serve_app.observe import tracing
from serve_app.output.export import segment_id, to_diarized_segment, to_logprobs
from serve_app.tasks import stop
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE

log = logging.getLogger("ray.serve")

PING_S = 15.0
"""SSE keep-alive interval, seconds: proxies close connections that are silent for longer."""

PING = format_sse_event(comment="ping")

HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
"""The second one keeps nginx from buffering events."""

Item = TypeVar("Item")
Message = TranscriptDelta | TranscriptSegment | TranscriptProgress | TranscriptDone | ErrorBody


@dataclass(frozen=True, slots=True)
class Extras:
    """Optional parts of a stream."""

    logprobs: bool = False
    length_s: Callable[[], float | None] | None = None
    """For progress events: returns the length of the audio, seconds, None while unknown. None: no progress events."""
    content: Callable[[Done], str | dict[str, Any]] | None = None
    """Renders the transcript for the last event, in the `response_format` asked for. None: the request has none."""
    segments: bool = False
    """Each segment has an event, as OpenAI's `diarized_json` wants it."""


async def stream(events: AsyncGenerator[Event, None], extras: Extras = Extras()) -> Response:
    """A response that sends each of `events` once it occurs. Raises the SpeechError of a failure before the first event."""
    messages = _messages(events, extras)
    try:
        first = await anext(messages)
    except BaseException:
        await messages.aclose()
        raise
    failures: list[str] = []
    return _EventStream(_encoded(first, messages, failures), messages, failures)


async def held(events: AsyncGenerator[Event, None], begin: asyncio.Event) -> AsyncGenerator[Event, None]:
    """The same events, none before `begin`. They are taken as they occur, whether or not they are asked for."""
    arrived: asyncio.Queue[Event | None] = asyncio.Queue()

    async def take() -> None:
        try:
            async with aclosing(events):
                async for event in events:
                    arrived.put_nowait(event)
        finally:
            arrived.put_nowait(None)

    taking = asyncio.ensure_future(take())
    try:
        await begin.wait()
        while (event := await arrived.get()) is not None:
            yield event
        await taking
    finally:
        await stop(taking)


def event_stream(content: AsyncGenerator[bytes, None]) -> Response:
    """A response of server-sent events that are encoded already."""
    return _EventStream(content)


class _EventStream(EventSourceResponse):
    """Leaves disconnects to `StopWhenGone`: Starlette's own check interrupts the clean-up of the generator at every await."""

    def __init__(
        self,
        content: AsyncGenerator[bytes, None],
        source: AsyncGenerator[Message, None] | None = None,
        failures: Sequence[str] = (),
    ) -> None:
        """`source`: begun already, and closed with the response. `failures`: codes of those that were sent, at its end."""
        super().__init__(content, headers=HEADERS)
        self._content, self._source, self._failures = content, source, failures

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self.stream_response(send)
        finally:
            # Where the client leaves, the content waits to be asked for more, or was never begun and closes nothing itself. Left
            # to the garbage collector, generators that depend on each other would be closed side by side, which fails.
            await self._content.aclose()
            if self._source is not None:
                await self._source.aclose()
            for code in self._failures:
                count_failure(scope, code)


async def _messages(events: AsyncGenerator[Event, None], extras: Extras) -> AsyncGenerator[Message, None]:
    text = ""
    async with aclosing(events):
        async for event in events:
            if isinstance(event, SegmentFinal):
                delta = f" {event.segment.text}" if text else event.segment.text
                text += delta
                logprobs = _logprobs(event.segment.tokens, extras)
                yield TranscriptDelta(
                    delta=delta,
                    channel=event.segment.channel,
                    speaker=event.segment.speaker,
                    segment_id=segment_id(event.segment) if extras.segments else None,
                    logprobs=logprobs,
                )
                if extras.segments:
                    yield TranscriptSegment(**to_diarized_segment(event.segment))
            elif isinstance(event, Progress) and extras.length_s is not None:
                yield TranscriptProgress(
                    audio_s=round(event.done_s, 3),
                    total_s=extras.length_s(),
                    windows_done=event.windows_done,
                    windows_planned=event.windows_planned,
                )
            elif isinstance(event, Done):
                # In a thread: hours of speech take long to render, which would block the event loop.
                with tracing.span("render"):
                    done = await asyncio.to_thread(_done, event, text, extras)
                yield done


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


async def with_pings(items: AsyncGenerator[Item, None]) -> AsyncGenerator[Item | None, None]:
    """The same items, and None wherever none has come for PING_S."""
    pending: asyncio.Task[Item | None] | None = None
    try:
        while True:
            pending = asyncio.create_task(_next(items))
            while not (await asyncio.wait([pending], timeout=PING_S))[0]:
                yield None
            item = pending.result()
            if item is None:
                return
            yield item
    finally:
        await stop(pending, closing=[items])


async def _next(items: AsyncGenerator[Item, None]) -> Item | None:
    return await anext(items, None)


async def _encoded(first: Message, messages: AsyncGenerator[Message, None], failures: list[str]) -> AsyncGenerator[bytes, None]:
    # Both: a generator that was not begun, as where the client leaves after the first message, closes nothing itself.
    async with aclosing(messages), aclosing(with_pings(_with_failure(messages))) as sent:
        yield await _rendered(first)
        async for message in sent:
            if message is None:
                yield PING
                continue
            if isinstance(message, ErrorBody):
                failures.append(message.error.code or SpeechError.code)
            yield await _rendered(message)


async def _with_failure(messages: AsyncGenerator[Message, None]) -> AsyncGenerator[Message, None]:
    """The same messages. A failure is one too, since the status has already been sent."""
    try:
        async for message in messages:
            yield message
    except SpeechError as error:
        yield error_body(error)
    except Exception:
        log.exception("a stream failed")
        yield error_body(EngineError(UNFORESEEN))


async def _rendered(message: Message) -> bytes:
    # The last message holds the whole text, and maybe a document; the others a sentence at most.
    return await asyncio.to_thread(_event, message) if isinstance(message, TranscriptDone) else _event(message)


def _event(message: Message) -> bytes:
    if isinstance(message, ErrorBody):
        return format_sse_event(event="error", data_str=message.model_dump_json())
    return format_sse_event(data_str=message.model_dump_json(exclude=message.absent))
