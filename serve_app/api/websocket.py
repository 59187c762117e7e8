"""Seed A's WebSocket, with more to ask for: a media file, transcribed while it is being sent, or live speech as raw samples."""

import asyncio
import base64
import json
import math
import time
from collections.abc import AsyncGenerator
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import aclosing
from typing import Any, BinaryIO, Literal, cast

from fastapi import APIRouter, WebSocket
from pydantic import BaseModel, Field, ValidationError

from serve_app.api import keywords, language
from serve_app.api.auth import Keys
from serve_app.api.sockets import Socket
from serve_app.audio.decoding import AudioFile
from serve_app.audio.growing_file import GrowingFile
from serve_app.audio.pcm import Encoding, PcmDecoder, PcmFormat
from serve_app.audio.probing import is_media, needs_whole_file
from serve_app.errors import AudioError, RequestError, ShuttingDown, SpeechError, UploadTooLarge
from serve_app.events import Done, Event, Hypothesis, LiveEvent, SegmentFinal
from serve_app.live.endpointing import Endpointing
from serve_app.output import export, subtitles
from serve_app.output.cues import CueRules, shape
from serve_app.pipeline import Commit, stop
from serve_app.service import JobOptions, SpeechService
from serve_app.settings import ModelSettings
from serve_app.window import SAMPLE_RATE, Samples

PATH = "/v1/audio/transcriptions/ws"
END = "END"
ENCODINGS: dict[int, Encoding] = {2: "pcm_s16le", 4: "pcm_f32le"}
"""What seed A's `bytes_per_sample` means."""


class StreamConfig(BaseModel):
    """The first message of a stream, as JSON; none of it is needed. What is not known is passed over."""

    sample_rate: int = Field(SAMPLE_RATE, description="Hz, of raw samples.")
    channels: int = Field(1, description="Channels of raw samples, interleaved.")
    bytes_per_sample: int = Field(2, description="Of raw samples: 2 (integers) or 4 (floats).")
    format: Literal["binary", "base64"] = Field("binary", description="How audio comes: binary frames, or text in base64.")
    encoding: Encoding | None = Field(None, description="Says that raw samples come, and which.")
    model: str | None = Field(None, description="Name of a model; none is the default model.")
    language: str | None = Field(None, description="The model must speak it.")
    keywords: list[str] = Field([], description="Phrases that are likely.")
    interim_results: bool = Field(False, description="Live: send `partial` messages, too.")
    endpointing: float | bool | None = Field(None, description="Live: milliseconds of silence that end an utterance, or false.")
    api_key: str | None = Field(None, description="A key of the server, where it cannot be sent as a header.")

    def pcm_format(self) -> PcmFormat:
        """Raises AudioError."""
        encoding = self.encoding or ENCODINGS.get(self.bytes_per_sample)
        if encoding is None:
            raise AudioError("bytes_per_sample must be 2 or 4.", param="bytes_per_sample")
        return PcmFormat(encoding, self.sample_rate, self.channels)

    def ends(self) -> Endpointing | None:
        """When an utterance ends; None as the server has it."""
        if self.endpointing is None or self.endpointing is True:
            return None
        return Endpointing(math.inf if self.endpointing is False else max(0.1, self.endpointing / 1000))


def create_router(service: SpeechService, keys: Keys) -> APIRouter:
    """The route."""
    router = APIRouter()

    @router.websocket(PATH)
    async def transcribe(websocket: WebSocket) -> None:
        await websocket.accept()
        socket = Socket(websocket, service.settings.live, service.admission)
        stream = _Stream(service, keys, socket, websocket.headers.get("authorization"))
        await socket.run(stream.talk, _describe)

    return router


def _describe(error: SpeechError) -> dict[str, Any]:
    return {"type": "error", "error": error.message, "code": error.code, "param": error.param}


class _Stream:
    """One connection from its first frame to its last."""

    def __init__(self, service: SpeechService, keys: Keys, socket: Socket, authorization: str | None) -> None:
        self._service = service
        self._keys = keys
        self._socket = socket
        self._authorization = authorization
        self._config = StreamConfig()
        self._began_s = time.monotonic()
        self._has_ended = False

    async def talk(self) -> None:
        """Raises SpeechError or WebSocketDisconnect."""
        live = self._service.settings.live
        first = await self._socket.receive(live.config_s)
        if first is None:
            self._service.admission.check_open()
        if isinstance(first, str) and first.lstrip().startswith("{"):
            self._config = _parsed(first)
            first = b""
        with self._keys.stream(self._authorization, self._config.api_key), self._service.admission.stream():
            model = self._service.find_model(self._config.model)
            spoken = language.check(language.codes([self._config.language or ""]), model)
            options = JobOptions(keywords=keywords.keywords(self._config.keywords), language=spoken)
            async with aclosing(self._pieces(first)) as pieces:
                head = await self._head(pieces)
                if not head:
                    if not self._has_ended:
                        self._service.admission.check_open()
                    raise AudioError("No audio data received by server.")
                if self._config.encoding is None and is_media(head):
                    await self._transcribe_file(head, pieces, model, options)
                else:
                    await self._transcribe_live(head, pieces, model, options)

    async def _pieces(self, first: str | bytes | None) -> AsyncGenerator[bytes, None]:
        """The audio as it was sent, until its end."""
        frame, total_bytes, most_bytes = first, 0, self._service.settings.limits.max_upload_bytes
        while frame is not None:
            if isinstance(frame, str) and frame.strip().upper() == END:
                self._has_ended = True
                return
            audio = self._audio_of(frame)
            total_bytes += len(audio)
            if total_bytes > most_bytes:
                raise UploadTooLarge.over(most_bytes)
            yield audio
            frame = await self._socket.receive(self._service.settings.live.idle_s)

    def _audio_of(self, frame: str | bytes) -> bytes:
        if isinstance(frame, bytes):
            return frame
        if self._config.format != "base64":
            raise RequestError("A text that is neither the configuration nor END came, and the format is not base64.")
        try:
            return base64.b64decode(frame, validate=True)
        except ValueError:
            raise RequestError("A frame is not base64.") from None

    async def _head(self, pieces: AsyncGenerator[bytes, None]) -> bytes:
        """The first bytes: enough to tell a media file where one may come, else whatever comes first."""
        head = b""
        async for piece in pieces:
            head += piece
            if head and (self._config.encoding is not None or is_media(head) is not None):
                break
        return head

    async def _transcribe_file(
        self, head: bytes, pieces: AsyncGenerator[bytes, None], model: ModelSettings, options: JobOptions
    ) -> None:
        # A thread of its own, as it waits for bytes, and others would wait with it.
        thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="growing file")
        with GrowingFile() as file:
            filling = asyncio.ensure_future(self._fill(file, head, pieces))
            reporting = asyncio.ensure_future(self._report(file, thread, model, options, is_wanted_whole=needs_whole_file(head)))
            try:
                await asyncio.wait([filling, reporting], return_when=asyncio.FIRST_COMPLETED)
                if not reporting.done():
                    # A sender that stopped half-way has sent no file, and one that has gone wants no text.
                    filling.result()
                # Whoever sends more than the file says it holds is not waited for.
                await reporting
            finally:
                file.finish()
                await stop(filling, reporting)
                thread.shutdown(wait=False)

    async def _fill(self, file: GrowingFile, head: bytes, pieces: AsyncGenerator[bytes, None]) -> None:
        """Store what comes, as fast as it comes; then raise WebSocketDisconnect when the client goes."""
        await file.write(head)
        async for piece in pieces:
            await file.write(piece)
        file.finish()
        await self._socket.until_gone()

    async def _report(
        self, file: GrowingFile, thread: Executor, model: ModelSettings, options: JobOptions, *, is_wanted_whole: bool
    ) -> None:
        if is_wanted_whole:
            await file.completed.wait()
            if not self._has_ended:
                raise ShuttingDown("The server was shut down before all of the file had come.")
        audio = AudioFile(file.whole if is_wanted_whole else cast(BinaryIO, file), thread)
        async with aclosing(self._service.transcribe_events(audio, model, options)) as events:
            async for event in events:
                await self._tell(event, audio.warnings, model, options)

    async def _transcribe_live(
        self, head: bytes, pieces: AsyncGenerator[bytes, None], model: ModelSettings, options: JobOptions
    ) -> None:
        decoder = PcmDecoder(self._config.pcm_format())

        async def samples() -> AsyncGenerator[Samples | Commit, None]:
            for block in decoder.blocks(head):
                yield block
            async for piece in pieces:
                for block in decoder.blocks(piece):
                    yield block
            yield decoder.finish()

        events = self._service.transcribe_stream(samples(), model, options, endpointing=self._config.ends())
        async with aclosing(events):
            async for event in events:
                await self._tell(event, (), model, options)

    async def _tell(self, event: Event | LiveEvent, warnings: tuple[str, ...], model: ModelSettings, options: JobOptions) -> None:
        if isinstance(event, SegmentFinal):
            await self._socket.send({"type": "segment", **export.to_segment(event.segment)})
        elif isinstance(event, Hypothesis) and self._config.interim_results:
            both = ((event.final, True), (event.partial, False))
            words = [{**export.to_word(word), "is_final": is_final} for heard, is_final in both for word in heard]
            await self._socket.send({"type": "partial", "text": " ".join(word["word"] for word in words), "words": words})
        elif isinstance(event, Done):
            await self._socket.send(await asyncio.to_thread(self._summary, event, warnings, model, options))

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
    try:
        return StreamConfig.model_validate(json.loads(text))
    except (ValueError, RecursionError) as error:
        if isinstance(error, ValidationError):
            first = error.errors()[0]
            name = str(first["loc"][0]) if first["loc"] else "configuration"
            raise RequestError(f"The field `{name}` is wrong: {first['msg']}.", param=name) from None
        raise RequestError("The configuration is not JSON.") from None
