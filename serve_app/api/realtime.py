"""OpenAI's Realtime API, transcription sessions: https://platform.openai.com/docs/guides/realtime-transcription

A session runs one live transcription at a time, and starts the next when the client changes the configuration or clears the
buffer, or when recognition fails. The transcription reads its audio from the socket, so nothing is read while the models lag.
"""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, WebSocket

from serve_app.api import realtime_beta
from serve_app.api import realtime_events as events
from serve_app.api.auth import Keys
from serve_app.api.errors import error_body
from serve_app.api.realtime_config import SessionConfig
from serve_app.api.websocket_connection import Connection
from serve_app.audio.pcm import PcmDecoder
from serve_app.errors import Overloaded, RequestError, ShuttingDown, SpeechError
from serve_app.events import Hypothesis, LiveEvent, SegmentFinal, SpeechStarted, SpeechStopped, UtteranceFinal
from serve_app.output.export import to_logprobs
from serve_app.pipeline import Commit
from serve_app.service import SpeechService
from serve_app.transcript import Token
from serve_app.window import SAMPLE_RATE, Samples

PATH = "/v1/realtime"
INTENT = "transcription"
PROTOCOL = "realtime"
"""WebSocket subprotocol of OpenAI's browser clients."""

KEY_PROTOCOL = "openai-insecure-api-key."
"""Prefix of the subprotocol that carries the API key of browsers, which cannot set headers."""

REFUSED = (Overloaded, ShuttingDown)
"""The server has no place for the session's audio: the session ends."""

MIN_COMMIT_S = 0.1
"""Minimum audio in a commit, seconds."""

TRANSCRIPTION = "conversation.item.input_audio_transcription"
"""Prefix of the event types about an item's text."""


def create_router(service: SpeechService, keys: Keys) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.websocket(PATH)
    async def realtime(websocket: WebSocket) -> None:
        protocols = websocket.scope.get("subprotocols", [])
        key = next((p.removeprefix(KEY_PROTOCOL) for p in protocols if p.startswith(KEY_PROTOCOL)), None)
        connection = Connection(websocket, service.settings, service.admission)
        session = _Session(service, connection, websocket.query_params)

        async def handle() -> None:
            with keys.stream(f"Bearer {key}" if key else websocket.headers.get("authorization")):
                await session.run()

        await connection.run(handle, events.error, PROTOCOL if PROTOCOL in protocols else None)

    return router


class _BufferCleared(Exception):
    """The client discards the audio since the last item."""


@dataclass(slots=True)
class _Item:
    """An utterance: the audio between two commits, by the client or by the VAD. Times are seconds since the session began."""

    start_s: float
    item_id: str = field(default_factory=lambda: events.new_id("item"))
    has_speech: bool = False
    is_committed: bool = False
    text: str = ""
    """Text sent as deltas so far."""
    sent_chars: int = 0
    """Characters of the segment in progress that are part of it."""
    tokens: list[Token] = field(default_factory=list)


class _Session:
    """One session, from its first event to its last."""

    def __init__(self, service: SpeechService, connection: Connection, query: Mapping[str, str]) -> None:
        self._service = service
        self._connection = connection
        self._query = query
        self._config = SessionConfig()
        self._next_config: SessionConfig | None = None
        self._is_beta = False  # the client's last update had the form of the beta
        self._fixed_fields = {
            "id": events.new_id("sess"),
            "object": "realtime.transcription_session",
            "expires_at": round(time.time() + service.settings.live.max_session_s),
        }
        self._received_s = 0.0  # All audio of the session; times of a transcription are relative to _flow_start_s.
        self._flow_start_s = 0.0
        self._item = _Item(0.0)
        self._last_item_id: str | None = None
        self._decoder = PcmDecoder(self._config.pcm_format)
        self._has_received = False
        self._is_open = True

    async def run(self) -> None:
        """Raises RequestError or WebSocketDisconnect."""
        if self._query.get("intent", INTENT) != INTENT:
            raise RequestError(f"This server supports only sessions with intent={INTENT}.", param="intent")
        model = self._query.get("model") or self._service.settings.default_model_name
        self._apply(self._updated_config({"audio": {"input": {"transcription": {"model": model}}}}))
        await self._send("session.created", session=self._session_fields())
        while self._is_open:
            await self._transcribe()
            if self._next_config is not None:
                self._apply(self._next_config)
                kind = "transcription_session.updated" if self._is_beta else "session.updated"
                await self._send(kind, session=self._session_fields())

    def _apply(self, config: SessionConfig) -> None:
        self._config, self._next_config = config, None
        self._decoder = PcmDecoder(config.pcm_format)

    async def _transcribe(self) -> None:
        """One live transcription: until the configuration changes, the buffer is cleared, recognition fails or audio ends."""
        self._flow_start_s, self._item = self._received_s, _Item(self._received_s)
        model, options = self._config.job(self._service)
        flow = self._service.transcribe_stream(
            self._audio(),
            model,
            options,
            endpointing=self._config.endpointing,
            right_context_scale=self._config.right_context_scale,
        )
        try:
            async with aclosing(flow):
                async for event in flow:
                    await self._handle(event)
        except _BufferCleared:
            await self._send("input_audio_buffer.cleared")
        except (RequestError, *REFUSED):
            raise
        except SpeechError as error:
            await self._fail_item(error)

    async def _fail_item(self, error: SpeechError) -> None:
        """Report that the item has no text. Where the client commits, wait for its commit first."""
        if not self._uses_vad and not self._item.is_committed:
            async with aclosing(self._audio()) as audio:
                try:
                    async for block in audio:
                        if isinstance(block, Commit):
                            break
                except _BufferCleared:
                    await self._send("input_audio_buffer.cleared")
                    return
        await self._commit()
        self._connection.count_failure(error)
        await self._send_of_item("failed", error=error_body(error).error.model_dump())

    @property
    def _uses_vad(self) -> bool:
        """Whether the server ends utterances; otherwise the client commits them."""
        return self._config.audio.input.turn_detection is not None

    @property
    def _is_between_utterances(self) -> bool:
        """Whether no audio of the next utterance was received. With push-to-talk a client may then be silent for any time."""
        if self._uses_vad:
            return not self._item.has_speech and not self._item.text
        return self._received_s - self._item.start_s < MIN_COMMIT_S

    async def _audio(self) -> AsyncGenerator[Samples | Commit, None]:
        """The client's audio and commits, until it changes the configuration or the server shuts down."""
        live = self._service.settings.live
        while True:
            silence_s = live.max_session_s if self._is_between_utterances else live.idle_s
            frame = await self._connection.receive(silence_s if self._has_received else live.config_s)
            self._has_received = True
            if frame is None:
                self._is_open = False
                yield self._flush_decoder()
                return
            event: dict[str, Any] = {}
            try:
                event = events.parse(frame)
                match event.get("type"):
                    case "input_audio_buffer.append":
                        audio = events.audio_of(event)
                        self._connection.begin_stream()
                        for block in self._decoder.blocks(audio):
                            yield self._counted(block)
                    case "input_audio_buffer.commit":
                        if self._received_s - self._item.start_s < MIN_COMMIT_S:
                            raise events.EmptyBuffer(f"A commit needs at least {1000 * MIN_COMMIT_S:.0f} ms of audio.")
                        yield self._flush_decoder()
                        await self._commit()
                        yield Commit()
                    case "input_audio_buffer.clear":
                        self._flush_decoder()
                        raise _BufferCleared
                    case "session.update" | "transcription_session.update" as kind:
                        is_beta = kind == "transcription_session.update"
                        self._next_config = self._updated_config(event.get("session"), is_beta=is_beta)
                        self._is_beta = is_beta
                        yield self._flush_decoder()
                        return
                    case kind:
                        raise events.unsupported(kind)
            except REFUSED:
                raise
            except SpeechError as error:
                self._connection.count_failure(error)
                await self._connection.send(events.error(error, event.get("event_id")))

    def _flush_decoder(self) -> Samples:
        """The samples that the decoder still holds. A new decoder takes its place."""
        samples = self._counted(self._decoder.finish())
        self._decoder = PcmDecoder(self._config.pcm_format)
        return samples

    def _counted(self, samples: Samples) -> Samples:
        self._received_s += len(samples) / SAMPLE_RATE
        return samples

    def _updated_config(self, changes: Any, *, is_beta: bool = False) -> SessionConfig:
        """The configuration after an update, completely checked; raises RequestError."""
        if not isinstance(changes, dict):
            raise RequestError("`session` must be an object.", param="session")
        config = self._config.updated(realtime_beta.to_changes(changes) if is_beta else changes)
        config.job(self._service)
        assert config.pcm_format is not None
        return config

    def _session_fields(self) -> dict[str, Any]:
        fields = self._config.model_dump()
        return {**self._fixed_fields, **(realtime_beta.from_fields(fields) if self._is_beta else fields)}

    async def _handle(self, event: LiveEvent) -> None:
        item = self._item
        match event:
            case SpeechStarted() | SpeechStopped() if not self._uses_vad:
                return
            case SpeechStarted():
                item.has_speech = True
                item.start_s = max(item.start_s, self._flow_start_s + event.at_s - self._config.padding_s)
                await self._send(
                    "input_audio_buffer.speech_started", audio_start_ms=round(1000 * item.start_s), item_id=item.item_id
                )
            case SpeechStopped() if item.has_speech:
                end_s = self._flow_start_s + event.at_s + self._config.endpointing.silence_s
                await self._send("input_audio_buffer.speech_stopped", audio_end_ms=round(1000 * end_s), item_id=item.item_id)
                await self._commit()
            case SegmentFinal():
                item.tokens += event.segment.tokens
                await self._send_delta(event.segment.text)
                item.sent_chars = 0
            case Hypothesis():
                await self._send_delta(" ".join(word.text for word in event.final))
            case UtteranceFinal():
                if item.is_committed or item.has_speech or item.text:
                    await self._commit()
                    await self._complete(self._flow_start_s + event.at_s)
                self._item = _Item(self._flow_start_s + event.at_s)

    async def _send_delta(self, final_text: str) -> None:
        """Send what is new in the final text of the segment in progress."""
        item, new = self._item, final_text[self._item.sent_chars :]
        if new:
            delta = f" {new}" if item.text and not item.sent_chars else new
            item.text, item.sent_chars = item.text + delta, len(final_text)
            await self._send_of_item("delta", delta=delta)

    async def _commit(self) -> None:
        if not self._item.is_committed:
            self._item.is_committed = True
            await self._send("input_audio_buffer.committed", item_id=self._item.item_id, previous_item_id=self._last_item_id)
            self._last_item_id = self._item.item_id

    async def _complete(self, end_s: float) -> None:
        seconds = max(0.0, end_s - self._item.start_s)
        await self._send_of_item(
            "completed",
            transcript=self._item.text,
            usage={"type": "duration", "seconds": round(seconds, 3)},
            **({"logprobs": to_logprobs(self._item.tokens)} if self._config.include else {}),
        )

    async def _send_of_item(self, kind: str, **fields: Any) -> None:
        await self._send(f"{TRANSCRIPTION}.{kind}", item_id=self._item.item_id, content_index=0, **fields)

    async def _send(self, kind: str, **fields: Any) -> None:
        await self._connection.send({"type": kind, "event_id": events.new_id("event"), **fields})
