"""Seed A's WebSocket protocol, extended: transcribes a media file while it is uploaded, or live speech sent as raw samples."""

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any, Literal

from fastapi import APIRouter, WebSocket
from pydantic import BaseModel, Field, ValidationError

from serve_app.api import keywords, language
from serve_app.api.auth import Keys
from serve_app.api.websocket_connection import MAX_MESSAGE_CHARS, Connection
from serve_app.audio.growing_file import GrowingFile
from serve_app.audio.pcm import Encoding, PcmDecoder, PcmFormat
from serve_app.audio.probing import is_media, may_be_samples, needs_whole_file
from serve_app.errors import AudioError, RequestError, ShuttingDown, SpeechError, UploadTooLarge
from serve_app.events import Done, Event, Hypothesis, LiveEvent, SegmentFinal
from serve_app.live.endpointing import Endpointing
from serve_app.observe import tracing
from serve_app.output import export, subtitles
from serve_app.output.cues import CueRules, shape
from serve_app.pipeline import Commit
from serve_app.service import JobOptions, SpeechService
from serve_app.settings import ModelSettings
from serve_app.tasks import stop
from serve_app.window import SAMPLE_RATE, Samples

PATH = "/v1/audio/transcriptions/ws"
END = "END"
"""Text message that ends the audio."""

ENCODINGS: dict[int, Encoding] = {2: "pcm_s16le", 4: "pcm_f32le"}
"""Encodings by seed A's `bytes_per_sample`."""


class StreamConfig(BaseModel):
    """The optional first message of a stream, JSON. Unknown fields are ignored."""

    sample_rate: int = Field(SAMPLE_RATE, description="Raw samples: sample rate, Hz.")
    channels: int = Field(1, description="Raw samples: number of interleaved channels.")
    bytes_per_sample: int = Field(2, description="Raw samples: 2 (16-bit integers) or 4 (floats).")
    format: Literal["binary", "base64"] = Field("binary", description="Form of the audio: binary messages, or base64 as text.")
    encoding: Encoding | None = Field(None, description="The audio is raw samples in this encoding, never a media file.")
    media: bool = Field(False, description="The audio is a media file, never raw samples.")
    track: int | None = Field(None, description="Files: number of the audio track, from 0. If omitted: the default track.")
    model: str | None = Field(None, description="Name of a model. If omitted: the default model.")
    language: str | None = Field(None, description="Language of the speech. The model must support it.")
    keywords: list[str] = Field([], description="Phrases that are likely to occur.")
    interim_results: bool = Field(False, description="Live: send `partial` messages too.")
    endpointing: float | bool | None = Field(
        None, description="Live: milliseconds of silence that end an utterance; false: never."
    )
    api_key: str | None = Field(None, description="API key, for clients that cannot send it as a header.")

    def pcm_format(self) -> PcmFormat:
        """Raises AudioError."""
        encoding = self.encoding or ENCODINGS.get(self.bytes_per_sample)
        if encoding is None:
            raise AudioError("bytes_per_sample must be 2 or 4.", param="bytes_per_sample")
        return PcmFormat(encoding, self.sample_rate, self.channels)

    def live_endpointing(self) -> Endpointing | None:
        """The endpointing that the client asks for; None: as the server's settings say."""
        if self.endpointing is None or self.endpointing is True:
            return None
        return Endpointing(math.inf if self.endpointing is False else max(0.1, self.endpointing / 1000))


def create_router(service: SpeechService, keys: Keys) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.websocket(PATH)
    async def transcribe(websocket: WebSocket) -> None:
        connection = Connection(websocket, service.settings, service.admission)
        stream = _Stream(service, keys, connection, websocket.headers.get("authorization"))
        await connection.run(stream.run, _error_message)

    return router


def _error_message(error: SpeechError) -> dict[str, Any]:
    return {"type": "error", "error": error.message, "code": error.code, "param": error.param}


class _Stream:
    """One stream, from its first message to its last."""

    def __init__(self, service: SpeechService, keys: Keys, connection: Connection, authorization: str | None) -> None:
        self._service = service
        self._keys = keys
        self._connection = connection
        self._authorization = authorization
        self._config = StreamConfig()
        self._began_s = time.monotonic()
        self._has_ended = False

    async def run(self) -> None:
        """Raises SpeechError or WebSocketDisconnect."""
        live = self._service.settings.live
        first = await self._connection.receive(live.config_s)
        if first is None:
            self._service.admission.check_open()
        if isinstance(first, str) and first[:MAX_MESSAGE_CHARS].lstrip().startswith("{"):
            self._config = _parsed(first)
            first = b""
        with self._keys.stream(self._authorization, self._config.api_key):
            model = self._service.find_model(self._config.model)
            code = language.check(language.codes([self._config.language or ""]), model)
            asked = keywords.phrases(self._config.keywords)
            phrases = keywords.check(asked, model, are_refused=self._service.refuses_keywords(model))
            options = JobOptions(keywords=phrases, language=code, entry_point="websocket")
            async with aclosing(self._chunks(first)) as chunks:
                head = await self._head(chunks)
                if not head:
                    if not self._has_ended:
                        self._service.admission.check_open()
                    raise AudioError("No audio data received by server.")
                self._connection.begin_stream()
                if await self._is_file(head):
                    await self._transcribe_file(head, chunks, model, options)
                else:
                    await self._transcribe_live(head, chunks, model, options)

    async def _chunks(self, first: str | bytes | None) -> AsyncGenerator[bytes, None]:
        """The audio of each message, from `first` until END or the server's shutdown."""
        frame, total_bytes, max_bytes = first, 0, self._service.settings.limits.max_upload_bytes
        while frame is not None:
            if isinstance(frame, str) and frame.strip().upper() == END:
                self._has_ended = True
                return
            audio = self._audio_of(frame)
            total_bytes += len(audio)
            if total_bytes > max_bytes:
                raise UploadTooLarge.over(max_bytes)
            yield audio
            frame = await self._connection.receive(self._service.settings.live.idle_s)

    def _audio_of(self, frame: str | bytes) -> bytes:
        if isinstance(frame, bytes):
            return frame
        if self._config.format != "base64":
            raise RequestError("Unexpected text: it is neither the configuration nor END, and `format` is not base64.")
        try:
            return base64.b64decode(frame, validate=True)
        except ValueError:
            raise RequestError("A message is not valid base64.") from None

    async def _head(self, chunks: AsyncGenerator[bytes, None]) -> bytes:
        """The first bytes of the audio: enough to recognise a media file, unless the configuration says what it is."""
        head, is_declared = b"", self._config.encoding is not None
        async for chunk in chunks:
            head += chunk
            if head and (is_declared or is_media(head) is not None):
                break
        return head

    async def _is_file(self, head: bytes) -> bool:
        """Whether the audio is a media file. Raises AudioError if it is neither that nor, as it seems, raw samples."""
        if self._config.encoding is not None:
            return False
        if self._config.media or is_media(head) or await self._service.decoders.recognises(head):
            return True
        if self._config.bytes_per_sample == 2 and not may_be_samples(head):
            raise AudioError("The audio is neither a media file nor raw samples.")
        return False

    async def _transcribe_file(
        self, head: bytes, chunks: AsyncGenerator[bytes, None], model: ModelSettings, options: JobOptions
    ) -> None:
        with GrowingFile() as file, self._service.admission.spool() as spool:
            receiving = asyncio.ensure_future(self._receive_file(file, head, chunks, spool))
            transcribing = asyncio.ensure_future(
                self._transcribe_growing(file, model, options, needs_whole=needs_whole_file(head))
            )
            try:
                await asyncio.wait([receiving, transcribing], return_when=asyncio.FIRST_COMPLETED)
                if not transcribing.done():
                    # Raises if the client has stopped in the middle of the file, or is gone.
                    receiving.result()
                # The transcript can be complete while the client still sends bytes after the end of the file.
                await transcribing
            finally:
                file.finish()
                await stop(receiving, transcribing)

    async def _receive_file(
        self, file: GrowingFile, head: bytes, chunks: AsyncGenerator[bytes, None], spool: Callable[[int], None]
    ) -> None:
        """Store the upload as fast as it arrives. Raises WebSocketDisconnect when the client is gone; it never returns."""
        with tracing.span("upload"):
            spool(len(head))
            await file.write(head)
            async for chunk in chunks:
                spool(len(chunk))
                await file.write(chunk)
        file.finish()
        await self._connection.wait_until_gone()

    async def _transcribe_growing(
        self, file: GrowingFile, model: ModelSettings, options: JobOptions, *, needs_whole: bool
    ) -> None:
        if needs_whole:
            await file.completed.wait()
            if not self._has_ended:
                raise ShuttingDown("The server is shutting down, and the upload was not complete.")
        recording = self._service.decoders.open(file.whole if needs_whole else file, track=self._config.track)
        async with aclosing(self._service.transcribe_events(recording, model, options)) as events:
            async for event in events:
                await self._send_event(event, recording.warnings, model, options)

    async def _transcribe_live(
        self, head: bytes, chunks: AsyncGenerator[bytes, None], model: ModelSettings, options: JobOptions
    ) -> None:
        decoder = PcmDecoder(self._config.pcm_format())

        async def samples() -> AsyncGenerator[Samples | Commit, None]:
            for block in decoder.blocks(head):
                yield block
            async for chunk in chunks:
                for block in decoder.blocks(chunk):
                    yield block
            yield decoder.finish()

        events = self._service.transcribe_stream(samples(), model, options, endpointing=self._config.live_endpointing())
        async with aclosing(events):
            async for event in events:
                await self._send_event(event, (), model, options)

    async def _send_event(
        self, event: Event | LiveEvent, warnings: tuple[str, ...], model: ModelSettings, options: JobOptions
    ) -> None:
        if isinstance(event, SegmentFinal):
            await self._connection.send({"type": "segment", **export.to_segment(event.segment)})
        elif isinstance(event, Hypothesis) and self._config.interim_results:
            final = [{**export.to_word(word), "is_final": True} for word in event.final]
            words = final + [{**export.to_word(word), "is_final": False} for word in event.partial]
            await self._connection.send({"type": "partial", "text": " ".join(word["word"] for word in words), "words": words})
        elif isinstance(event, Done):
            with tracing.span("render"):
                summary = await asyncio.to_thread(self._summary, event, warnings, model, options)
            await self._connection.send(summary)

    def _summary(self, done: Done, warnings: tuple[str, ...], model: ModelSettings, options: JobOptions) -> dict[str, Any]:
        transcript = options.transcript(done, warnings, model)
        rules = CueRules(**dict(self._service.settings.subtitles))
        return {
            "type": "final_transcription",
            "text": transcript.text,
            "language": transcript.language,
            "transcription_time": round(time.monotonic() - self._began_s, 3),
            "total_segments": len(transcript.segments),
            "final_duration_processed_seconds": round(done.duration_s, 3),
            "csv_content": subtitles.to_csv(transcript),
            "srt_content": subtitles.to_srt(shape(transcript.segments, rules, transcript.duration_s)),
            **({"warnings": list(warnings)} if warnings else {}),
        }


def _parsed(text: str) -> StreamConfig:
    if len(text) > MAX_MESSAGE_CHARS:
        raise RequestError(f"The configuration may have at most {MAX_MESSAGE_CHARS} characters.")
    try:
        return StreamConfig.model_validate(json.loads(text))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "configuration"
            raise RequestError(f"The field `{name}` is wrong: {first['msg']}.", param=name) from None
        raise RequestError("The configuration is not valid JSON.") from None
