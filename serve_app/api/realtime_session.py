"""What a Realtime session is set to: OpenAI's transcription session, and what it means here. Pure."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from serve_app.api import keywords, language
from serve_app.audio.pcm import Encoding, PcmFormat
from serve_app.errors import RequestError
from serve_app.live.endpointing import Endpointing
from serve_app.service import JobOptions
from serve_app.settings import ModelSettings

PCM_RATE = 24_000
TELEPHONE_RATE = 8_000

SILENCE_S = {"low": 2.0, "medium": 1.0, "auto": 1.0, "high": 0.5}
"""What the eagerness of `semantic_vad` means here: the silence that ends a turn, in seconds."""

RIGHT_CONTEXT_SCALE = {"minimal": 0.25, "low": 0.5, "medium": 1.0, "high": 2.0, "xhigh": 4.0}
"""What `delay` means here: see SpeechService.transcribe_stream."""


class Pcm(BaseModel):
    type: Literal["audio/pcm"] = "audio/pcm"
    rate: int = PCM_RATE


class Telephone(BaseModel):
    type: Literal["audio/pcmu", "audio/pcma"]


class ServerVad(BaseModel):
    type: Literal["server_vad"] = "server_vad"
    threshold: float = Field(0.5, gt=0, le=1)
    prefix_padding_ms: int = Field(300, ge=0)
    silence_duration_ms: int = Field(500, ge=100, le=30_000)


class SemanticVad(BaseModel):
    type: Literal["semantic_vad"]
    eagerness: Literal["low", "medium", "high", "auto"] = "auto"


class Transcription(BaseModel):
    model: str | None = None
    language: str | None = None
    languages: list[str] | None = None
    prompt: str | None = None
    keywords: list[str] | None = None
    delay: Literal["minimal", "low", "medium", "high", "xhigh"] | None = None


class Input(BaseModel):
    format: Annotated[Pcm | Telephone, Field(discriminator="type")] = Pcm()
    transcription: Transcription = Transcription()
    noise_reduction: None = None
    turn_detection: Annotated[ServerVad | SemanticVad, Field(discriminator="type")] | None = ServerVad()

    @field_validator("transcription", mode="before")
    @classmethod
    def _is_always_on(cls, given: Any) -> Any:
        return {} if given is None else given

    @field_validator("noise_reduction", mode="before")
    @classmethod
    def _is_not_done(cls, _given: Any) -> None:
        """The models are trained on noise; cleaning the audio first makes them worse."""


class Audio(BaseModel):
    input: Input = Input()


class Session(BaseModel):
    """All of it. Fields that are not known are passed over."""

    type: Literal["transcription"] = "transcription"
    audio: Audio = Audio()
    include: list[Literal["item.input_audio_transcription.logprobs"]] | None = None

    def updated(self, changes: Mapping[str, Any]) -> "Session":
        """The session with what `changes` has of it replaced. Raises RequestError."""
        try:
            return Session.model_validate(_merged(self.model_dump(), changes))
        except ValidationError as error:
            first = error.errors()[0]
            # A tagged union adds its tag to the place.
            place = ".".join(str(part) for part in ("session", *first["loc"]) if "/" not in str(part) and "_vad" not in str(part))
            raise RequestError(f"`{place}` is wrong: {first['msg']}.", param=place) from None

    @property
    def pcm_format(self) -> PcmFormat:
        """Raises AudioError."""
        audio = self.audio.input.format
        if isinstance(audio, Pcm):
            return PcmFormat("pcm_s16le", audio.rate)
        encoding: Encoding = "mulaw" if audio.type == "audio/pcmu" else "alaw"
        return PcmFormat(encoding, TELEPHONE_RATE)

    @property
    def endpointing(self) -> Endpointing:
        detection = self.audio.input.turn_detection
        if detection is None:
            return Endpointing(math.inf)
        if isinstance(detection, SemanticVad):
            return Endpointing(SILENCE_S[detection.eagerness])
        return Endpointing(detection.silence_duration_ms / 1000, detection.threshold)

    @property
    def padding_s(self) -> float:
        """Audio before its first sound that counts as part of a turn."""
        detection = self.audio.input.turn_detection
        return detection.prefix_padding_ms / 1000 if isinstance(detection, ServerVad) else 0.0

    @property
    def right_context_scale(self) -> float:
        return RIGHT_CONTEXT_SCALE[self.audio.input.transcription.delay or "medium"]

    def options(self, model: ModelSettings) -> JobOptions:
        """Raises RequestError for what that model cannot do."""
        asked = self.audio.input.transcription
        spoken = language.check(language.codes([asked.language or "", *(asked.languages or [])]), model)
        return JobOptions(keywords=keywords.keywords(asked.keywords, asked.prompt), language=spoken)


def _merged(old: Any, new: Any) -> Any:
    """What `new` says, and what `old` said of the rest; an object of another `type` has nothing from the old one."""
    if not isinstance(old, dict) or not isinstance(new, Mapping) or ("type" in new and new["type"] != old.get("type")):
        return new
    return {**old, **{name: _merged(old.get(name), value) for name, value in new.items()}}
