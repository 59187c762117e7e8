"""The configuration of a stream in seed A's WebSocket protocol: what its client asks for."""

import io
import json
import math
from typing import Literal

from pydantic import BaseModel, Field, ValidationError

from serve_app.api.speakers import SpeakerChoice
from serve_app.api.websocket_connection import MAX_MESSAGE_CHARS
from serve_app.audio.pcm import Encoding, PcmFormat
from serve_app.errors import AudioError, RequestError
from serve_app.live.endpointing import Endpointing
from serve_app.window import SAMPLE_RATE

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
    multichannel: bool = Field(False, description="Transcribe every channel by itself, instead of their mix.")
    drop_crosstalk: bool | None = Field(
        None, description="Files with `multichannel`: as over REST. If omitted: as the server's settings say."
    )
    diarize: bool | Literal["optional"] | None = Field(
        None, description="Files: find out who speaks. `optional`: go on without, and with a warning, where that cannot be done."
    )
    diarizer: str | None = Field(None, description="Name of a diarizer. If omitted: the first of the server.")
    known_speaker_names: list[str] = Field([], description="Names of people who may speak, each with a reference.")
    known_speaker_references: list[str] = Field([], description="How these people sound: data URLs, as over REST.")
    track: int | None = Field(None, description="Files: number of the audio track, from 0. If omitted: the default track.")
    model: str | None = Field(None, description="Name of a model. If omitted: the default model.")
    language: str | None = Field(None, description="Language of the speech. The model must support it.")
    keywords: list[str] = Field([], description="Phrases that are likely to occur.")
    interim_results: bool = Field(False, description="Live: send `partial` messages too.")
    endpointing: float | bool | None = Field(
        None, description="Live: milliseconds of silence that end an utterance; false: never."
    )
    api_key: str | None = Field(None, description="API key, for clients that cannot send it as a header.")

    @classmethod
    def parsed(cls, text: str) -> "StreamConfig":
        """The configuration in a message. Raises RequestError."""
        if len(text) > MAX_MESSAGE_CHARS:
            raise RequestError(f"The configuration may have at most {MAX_MESSAGE_CHARS} characters.")
        try:
            return cls.model_validate(json.loads(text))
        except (ValueError, RecursionError) as error:
            if isinstance(error, ValidationError):
                first = error.errors()[0]
                name = str(first["loc"][0]) if first["loc"] else "configuration"
                raise RequestError(f"The field `{name}` is wrong: {first['msg']}.", param=name) from None
            raise RequestError("The configuration is not valid JSON.") from None

    def pcm_format(self) -> PcmFormat:
        """Raises AudioError."""
        encoding = self.encoding or ENCODINGS.get(self.bytes_per_sample)
        if encoding is None:
            raise AudioError("bytes_per_sample must be 2 or 4.", param="bytes_per_sample")
        return PcmFormat(encoding, self.sample_rate, self.channels)

    def speaker_choice(self) -> SpeakerChoice:
        """What the client wants to know of who speaks."""
        references = tuple(io.BytesIO(url.encode(errors="replace")) for url in self.known_speaker_references if url.strip())
        return SpeakerChoice(self.diarize, self.diarizer, tuple(self.known_speaker_names), references)

    def live_endpointing(self) -> Endpointing | None:
        """The endpointing that the client asks for; None: as the server's settings say."""
        if self.endpointing is None or self.endpointing is True:
            return None
        return Endpointing(math.inf if self.endpointing is False else max(0.1, self.endpointing / 1000))
