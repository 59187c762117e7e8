"""Configuration of a Realtime session: the fields of OpenAI's transcription session, and their meaning on this server. Pure."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, Field, ValidationError, field_validator

from serve_app.api import keywords, language
from serve_app.audio.pcm import Encoding, PcmFormat
from serve_app.errors import RequestError
from serve_app.live.endpointing import Endpointing
from serve_app.service import JobOptions, SpeechService
from serve_app.settings import ModelSettings

PCM_RATE = 24_000
"""Default sample rate of `audio/pcm`, Hz."""

TELEPHONE_RATE = 8_000
"""Sample rate of `audio/pcmu` and `audio/pcma`, Hz."""

SILENCE_S = {"low": 2.0, "medium": 1.0, "auto": 1.0, "high": 0.5}
"""Silence that ends an utterance, seconds, by the `eagerness` of `semantic_vad`."""

MODELS_WITHOUT_VAD = frozenset({"gpt-realtime-whisper", "gpt-live-transcribe"})
"""Names of OpenAI's models for which turn detection is always off there, so that their clients do not switch it off."""

RIGHT_CONTEXT_SCALE = {"minimal": 0.25, "low": 0.5, "medium": 1.0, "high": 2.0, "xhigh": 4.0}
"""`right_context_scale` of SpeechService.transcribe_stream, by `delay`."""


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


def _default_turn_detection(fields: Mapping[str, Any]) -> ServerVad | None:
    transcription = fields.get("transcription", Transcription())
    return None if transcription.model in MODELS_WITHOUT_VAD else ServerVad()


class Input(BaseModel):
    format: Annotated[Pcm | Telephone, Field(discriminator="type")] = Pcm()
    transcription: Transcription = Transcription()
    noise_reduction: None = None
    turn_detection: Annotated[ServerVad | SemanticVad, Field(discriminator="type")] | None = Field(
        default_factory=_default_turn_detection
    )

    @field_validator("transcription", mode="before")
    @classmethod
    def _cannot_be_disabled(cls, value: Any) -> Any:
        return {} if value is None else value

    @field_validator("turn_detection", mode="before")
    @classmethod
    def _is_server_vad(cls, value: Any) -> Any:
        """In the beta the type may be left out."""
        return {"type": "server_vad", **value} if isinstance(value, dict) else value

    @field_validator("noise_reduction", mode="before")
    @classmethod
    def _is_ignored(cls, _value: Any) -> None:
        """Always None: the models are trained on noisy audio, and noise reduction makes their results worse."""


class Audio(BaseModel):
    input: Input = Input()


class SessionConfig(BaseModel):
    """The whole configuration. Unknown fields are ignored."""

    type: Literal["transcription"] = "transcription"
    audio: Audio = Audio()
    include: list[Literal["item.input_audio_transcription.logprobs"]] | None = None

    def updated(self, changes: Mapping[str, Any]) -> "SessionConfig":
        """The configuration with the fields in `changes` replaced. Raises RequestError."""
        has_turn_detection = "turn_detection" in self.audio.input.model_fields_set
        fields = self.model_dump(exclude=None if has_turn_detection else {"audio": {"input": {"turn_detection"}}})
        try:
            return SessionConfig.model_validate(_merged(fields, changes))
        except ValidationError as error:
            first = error.errors()[0]
            # Pydantic puts the tag of a tagged union into the location.
            names = ("session", *first["loc"])
            field = ".".join(str(name) for name in names if "/" not in str(name) and "_vad" not in str(name))
            raise RequestError(f"`{field}` is wrong: {first['msg']}.", param=field) from None

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
        """Without turn detection only the client ends utterances: the silence is infinite."""
        detection = self.audio.input.turn_detection
        if detection is None:
            return Endpointing(math.inf)
        if isinstance(detection, SemanticVad):
            return Endpointing(SILENCE_S[detection.eagerness])
        return Endpointing(detection.silence_duration_ms / 1000, detection.threshold)

    @property
    def padding_s(self) -> float:
        """Audio before the detected start of speech that counts as part of the utterance, seconds."""
        detection = self.audio.input.turn_detection
        return detection.prefix_padding_ms / 1000 if isinstance(detection, ServerVad) else 0.0

    @property
    def right_context_scale(self) -> float:
        return RIGHT_CONTEXT_SCALE[self.audio.input.transcription.delay or "medium"]

    def job(self, service: SpeechService) -> tuple[ModelSettings, JobOptions]:
        """The model and what is asked of it. Raises ModelNotFound, and RequestError for a language that the model does not
        support, for keywords that it does not take, and for keywords beyond the limits."""
        asked = self.audio.input.transcription
        model = service.find_model(asked.model)
        code = language.check(language.codes([asked.language or "", *(asked.languages or [])]), model)
        phrases = keywords.phrases(asked.keywords, asked.prompt)
        boosted = keywords.check(phrases, model, are_refused=service.refuses_keywords(model))
        return model, JobOptions(keywords=boosted, language=code, entry_point="realtime")


def _merged(old: Any, new: Any) -> Any:
    """`new`, completed by `old`. Objects are merged field by field, unless `new` names another `type`: then it replaces `old`."""
    if not isinstance(old, dict) or not isinstance(new, Mapping) or ("type" in new and new["type"] != old.get("type")):
        return new
    return {**old, **{name: _merged(old.get(name), value) for name, value in new.items()}}
