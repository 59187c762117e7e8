"""OpenAI's Realtime API, transcription sessions: https://platform.openai.com/docs/guides/realtime-transcription

One flow of live speech is open as long as the session's settings stay the same. It takes audio straight from the socket: nothing
is read while the models are behind.
"""

import time
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import Any

from fastapi import APIRouter, WebSocket

from serve_app.api import realtime_events as events
from serve_app.api.auth import Keys
from serve_app.api.errors import describe
from serve_app.api.realtime_session import Session
from serve_app.api.sockets import Socket
from serve_app.audio.pcm import PcmDecoder
from serve_app.errors import RequestError, SpeechError
from serve_app.events import Hypothesis, LiveEvent, SegmentFinal, SpeechStarted, SpeechStopped, UtteranceFinal
from serve_app.output.export import to_logprobs
from serve_app.pipeline import Commit
from serve_app.service import SpeechService
from serve_app.transcript import Token
from serve_app.window import SAMPLE_RATE, Samples

PATH = "/v1/realtime"
INTENT = "transcription"
PROTOCOL = "realtime"
KEY_PROTOCOL = "openai-insecure-api-key."
"""Browsers cannot set headers: a key comes as a subprotocol of that beginning."""

MIN_COMMIT_S = 0.1
TRANSCRIPTION = "conversation.item.input_audio_transcription"


def create_router(service: SpeechService, keys: Keys) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.websocket(PATH)
    async def realtime(websocket: WebSocket) -> None:
        protocols = websocket.scope.get("subprotocols", [])
        key = next((p.removeprefix(KEY_PROTOCOL) for p in protocols if p.startswith(KEY_PROTOCOL)), None)
        await websocket.accept(PROTOCOL if PROTOCOL in protocols else None)
        socket = Socket(websocket, service.settings.live, service.admission)
        connection = _Connection(service, socket, websocket.query_params)

        async def talk() -> None:
            with keys.stream(f"Bearer {key}" if key else websocket.headers.get("authorization")), service.admission.stream():
                await connection.talk()

        await socket.run(talk, events.error)

    return router


class _Discarded(Exception):
    """The client wants nothing of what it sent since the last item."""


@dataclass(slots=True)
class _Item:
    """What is said between two commits, by the client or by a pause. Times in seconds of all audio of the session."""

    start_s: float
    item_id: str = field(default_factory=lambda: events.new_id("item"))
    has_speech: bool = False
    is_committed: bool = False
    text: str = ""
    told: int = 0
    """Characters of the segment that is not final."""
    tokens: list[Token] = field(default_factory=list)


class _Connection:
    """One session from its first event to its last."""

    def __init__(self, service: SpeechService, socket: Socket, query: Mapping[str, str]) -> None:
        self._service = service
        self._socket = socket
        self._query = query
        self._session = Session()
        self._next_session: Session | None = None
        self._fixed = {
            "id": events.new_id("sess"),
            "object": "realtime.transcription_session",
            "expires_at": round(time.time() + service.settings.live.max_session_s),
        }
        self._position_s = 0.0  # of all audio that came
        self._flow_start_s = 0.0
        self._item = _Item(0.0)
        self._last_item_id: str | None = None
        self._decoder = PcmDecoder(self._session.pcm_format)
        self._has_begun = False
        self._is_open = True

    async def talk(self) -> None:
        """Raises RequestError or WebSocketDisconnect."""
        if self._query.get("intent", INTENT) != INTENT:
            raise RequestError(f"This server has sessions with intent={INTENT} only.", param="intent")
        model = self._query.get("model") or self._service.settings.default_model_name
        self._set(self._checked({"audio": {"input": {"transcription": {"model": model}}}}))
        await self._send("session.created", session=self._described())
        while self._is_open:
            await self._converse()
            if self._next_session is not None:
                self._set(self._next_session)
                await self._send("session.updated", session=self._described())

    def _set(self, session: Session) -> None:
        self._session, self._next_session = session, None
        self._decoder = PcmDecoder(session.pcm_format)

    async def _converse(self) -> None:
        """Until the settings change, the audio is thrown away, recognition fails, or nothing more comes."""
        self._flow_start_s, self._item = self._position_s, _Item(self._position_s)
        model = self._service.find_model(self._session.audio.input.transcription.model)
        flow = self._service.transcribe_stream(
            self._audio(),
            model,
            self._session.options(model),
            endpointing=self._session.endpointing,
            right_context_scale=self._session.right_context_scale,
        )
        try:
            async with aclosing(flow):
                async for event in flow:
                    await self._tell(event)
        except _Discarded:
            await self._send("input_audio_buffer.cleared")
        except RequestError:
            raise
        except SpeechError as error:
            await self._fail(error)

    async def _fail(self, error: SpeechError) -> None:
        """The item has no text. One that the client is to commit ends when it does."""
        if not self._has_turns and not self._item.is_committed:
            async with aclosing(self._audio()) as audio:
                try:
                    async for piece in audio:
                        if isinstance(piece, Commit):
                            break
                except _Discarded:
                    await self._send("input_audio_buffer.cleared")
                    return
        await self._commit()
        await self._tell_of_item("failed", error=describe(error).error.model_dump())

    @property
    def _has_turns(self) -> bool:
        """The server finds where utterances end."""
        return self._session.audio.input.turn_detection is not None

    @property
    def _is_between(self) -> bool:
        """Nothing has come of the next utterance: a client with a button to press is as silent as it likes."""
        if self._has_turns:
            return not self._item.has_speech and not self._item.text
        return self._position_s - self._item.start_s < MIN_COMMIT_S

    async def _audio(self) -> AsyncGenerator[Samples | Commit, None]:
        """What the client sends, until it changes the settings or the server ends."""
        live = self._service.settings.live
        while True:
            frame = await self._socket.receive(live.max_session_s if self._has_begun and self._is_between else live.idle_s)
            self._has_begun = True
            if frame is None:
                self._is_open = False
                yield self._flushed()
                return
            event: dict[str, Any] = {}
            try:
                event = events.parsed(frame)
                match event.get("type"):
                    case "input_audio_buffer.append":
                        for block in self._decoder.blocks(events.audio_of(event)):
                            yield self._heard(block)
                    case "input_audio_buffer.commit":
                        if self._position_s - self._item.start_s < MIN_COMMIT_S:
                            raise events.EmptyBuffer(f"There is less than {1000 * MIN_COMMIT_S:.0f} ms of audio to commit.")
                        yield self._flushed()
                        await self._commit()
                        yield Commit()
                    case "input_audio_buffer.clear":
                        self._flushed()
                        raise _Discarded
                    case "session.update":
                        self._next_session = self._checked(event.get("session"))
                        yield self._flushed()
                        return
                    case kind:
                        raise events.unknown(kind)
            except SpeechError as error:
                await self._socket.send(events.error(error, event.get("event_id")))

    def _flushed(self) -> Samples:
        """What the decoder holds back; it begins anew."""
        samples = self._heard(self._decoder.finish())
        self._decoder = PcmDecoder(self._session.pcm_format)
        return samples

    def _heard(self, samples: Samples) -> Samples:
        self._position_s += len(samples) / SAMPLE_RATE
        return samples

    def _checked(self, changes: Any) -> Session:
        """The session after an update that can be honoured; raises RequestError."""
        if not isinstance(changes, dict):
            raise RequestError("`session` must be an object.", param="session")
        session = self._session.updated(changes)
        session.options(self._service.find_model(session.audio.input.transcription.model))
        assert session.pcm_format is not None
        return session

    def _described(self) -> dict[str, Any]:
        return {**self._fixed, **self._session.model_dump()}

    async def _tell(self, event: LiveEvent) -> None:
        item = self._item
        match event:
            case SpeechStarted() | SpeechStopped() if not self._has_turns:
                return
            case SpeechStarted():
                item.has_speech = True
                item.start_s = max(item.start_s, self._flow_start_s + event.at_s - self._session.padding_s)
                await self._send(
                    "input_audio_buffer.speech_started", audio_start_ms=round(1000 * item.start_s), item_id=item.item_id
                )
            case SpeechStopped() if item.has_speech:
                end_s = self._flow_start_s + event.at_s + self._session.endpointing.silence_s
                await self._send("input_audio_buffer.speech_stopped", audio_end_ms=round(1000 * end_s), item_id=item.item_id)
                await self._commit()
            case SegmentFinal():
                item.tokens += event.segment.tokens
                await self._tell_text(event.segment.text)
                item.told = 0
            case Hypothesis():
                await self._tell_text(" ".join(word.text for word in event.final))
            case UtteranceFinal():
                if item.is_committed or item.has_speech or item.text:
                    await self._commit()
                    await self._complete(self._flow_start_s + event.at_s)
                self._item = _Item(self._flow_start_s + event.at_s)

    async def _tell_text(self, text: str) -> None:
        """What was not told yet of a segment's final text."""
        item, fresh = self._item, text[self._item.told :]
        if fresh:
            delta = f" {fresh}" if item.text and not item.told else fresh
            item.text, item.told = item.text + delta, len(text)
            await self._tell_of_item("delta", delta=delta)

    async def _commit(self) -> None:
        if not self._item.is_committed:
            self._item.is_committed = True
            await self._send("input_audio_buffer.committed", item_id=self._item.item_id, previous_item_id=self._last_item_id)
            self._last_item_id = self._item.item_id

    async def _complete(self, end_s: float) -> None:
        seconds = max(0.0, end_s - self._item.start_s)
        await self._tell_of_item(
            "completed",
            transcript=self._item.text,
            usage={"type": "duration", "seconds": round(seconds, 3)},
            **({"logprobs": to_logprobs(self._item.tokens)} if self._session.include else {}),
        )

    async def _tell_of_item(self, what: str, **fields: Any) -> None:
        await self._send(f"{TRANSCRIPTION}.{what}", item_id=self._item.item_id, content_index=0, **fields)

    async def _send(self, kind: str, **fields: Any) -> None:
        await self._socket.send({"type": kind, "event_id": events.new_id("event"), **fields})
