"""Seed A's WebSocket protocol, extended: transcribes a media file while it is uploaded, or live speech sent as raw samples."""

import asyncio
import base64
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from typing import Any

from fastapi import APIRouter, WebSocket

from serve_app.api import keywords, language
from serve_app.api.auth import Keys
from serve_app.api.response_formats import Rendering
from serve_app.api.websocket_config import StreamConfig
from serve_app.api.websocket_connection import MAX_MESSAGE_CHARS, Connection
from serve_app.audio.growing_file import GrowingFile
from serve_app.audio.pcm import PcmDecoder
from serve_app.audio.probing import is_media, may_be_samples, needs_whole_file
from serve_app.errors import AudioError, RequestError, ShuttingDown, SpeechError, UploadTooLarge
from serve_app.events import Done, Event, Hypothesis, LiveEvent, SegmentFinal
from serve_app.live.channels import transcribe_channels
from serve_app.observe import tracing
from serve_app.output import export, subtitles
from serve_app.output.cues import CueRules
from serve_app.service import JobOptions, SpeechService
from serve_app.settings import ModelSettings
from serve_app.tasks import stop
from serve_app.transcript import Transcript
from serve_app.window import Samples

PATH = "/v1/audio/transcriptions/ws"
END = "END"
"""Text message that ends the audio."""

FILES_ONLY = "Speakers are told apart in media files only, not in raw samples."


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
            self._config = StreamConfig.parsed(first)
            first = b""
        with self._keys.stream(self._authorization, self._config.api_key):
            model = self._service.find_model(self._config.model)
            code = language.check(language.codes([self._config.language or ""]), model)
            asked = keywords.phrases(self._config.keywords)
            phrases = keywords.check(asked, model, are_refused=self._service.refuses_keywords(model))
            options = JobOptions(
                keywords=phrases,
                language=code,
                entry_point="websocket",
                drops_crosstalk=self._config.drop_crosstalk,
            )
            async with aclosing(self._chunks(first)) as chunks:
                head = await self._head(chunks)
                if not head:
                    if not self._has_ended:
                        self._service.admission.check_open()
                    raise AudioError("No audio data received by server.")
                self._connection.begin_stream()
                if await self._is_file(head):
                    choice, channels = self._config.speaker_choice(), self._config.multichannel
                    speakers = await choice.options(self._service, Rendering(), multichannel=channels)
                    await self._transcribe_file(head, chunks, model, replace(options, speakers=speakers))
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
        source, config = file.whole if needs_whole else file, self._config
        recording = self._service.decoders.open(source, track=config.track, multichannel=config.multichannel)

        def transcript(done: Done) -> Transcript:
            return options.transcript(done, recording.warnings, model, recording.channels)

        async with aclosing(self._service.transcribe_events(recording, model, options)) as events:
            async for event in events:
                await self._send_event(event, transcript)

    async def _transcribe_live(
        self, head: bytes, chunks: AsyncGenerator[bytes, None], model: ModelSettings, options: JobOptions
    ) -> None:
        config, audio_format = self._config, self._config.pcm_format()
        if config.diarize and config.diarize != "optional":
            raise RequestError(FILES_ONLY, param="diarize")
        decoder = PcmDecoder(audio_format, separates=config.multichannel)
        channels = tuple(range(audio_format.channels)) if config.multichannel else ()

        async def samples() -> AsyncGenerator[Samples, None]:
            for block in decoder.blocks(head):
                yield block
            async for chunk in chunks:
                for block in decoder.blocks(chunk):
                    yield block
            yield decoder.finish()

        def transcript(done: Done) -> Transcript:
            return options.transcript(done, (FILES_ONLY,) if config.diarize else (), model, channels)

        def transcribe(audio: AsyncGenerator[Samples, None]) -> AsyncGenerator[LiveEvent, None]:
            return self._service.transcribe_stream(audio, model, options, endpointing=config.live_endpointing())

        if channels:
            self._connection.begin_stream(len(channels))
        events = transcribe_channels(samples(), len(channels), transcribe) if channels else transcribe(samples())
        async with aclosing(events):
            async for event in events:
                await self._send_event(event, transcript)

    async def _send_event(self, event: Event | LiveEvent, transcript_of: Callable[[Done], Transcript]) -> None:
        if isinstance(event, SegmentFinal):
            await self._connection.send({"type": "segment", **export.to_segment(event.segment)})
        elif isinstance(event, Hypothesis) and self._config.interim_results:
            final = [{**export.to_word(word), "is_final": True} for word in event.final]
            words = final + [{**export.to_word(word), "is_final": False} for word in event.partial]
            channel = {} if event.channel is None else {"channel": event.channel}
            text = " ".join(word["word"] for word in words)
            await self._connection.send({"type": "partial", "text": text, "words": words, **channel})
        elif isinstance(event, Done):
            with tracing.span("render"):
                summary = await asyncio.to_thread(self._summary, transcript_of(event))
            await self._connection.send(summary)

    def _summary(self, transcript: Transcript) -> dict[str, Any]:
        rules = CueRules(**dict(self._service.settings.subtitles))
        return {
            "type": "final_transcription",
            "text": transcript.text,
            **export.channel_texts(transcript),
            "language": transcript.language,
            "transcription_time": round(time.monotonic() - self._began_s, 3),
            "total_segments": len(transcript.segments),
            "final_duration_processed_seconds": round(transcript.duration_s, 3),
            "csv_content": subtitles.to_csv(transcript),
            "srt_content": subtitles.to_srt(subtitles.cues_of(transcript, rules)),
            **({"warnings": list(transcript.warnings)} if transcript.warnings else {}),
        }
