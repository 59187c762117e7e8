"""Wire schemas, with OpenAI's names. They describe and check what goes out; the domain types are in `transcript.py`."""

from typing import Any, ClassVar, Literal

from pydantic import BaseModel, Field


class ErrorObject(BaseModel):
    """OpenAI's error object."""

    message: str = Field(description="What is wrong, for people.")
    type: str = Field(description="`invalid_request_error`, `rate_limit_error` or `server_error`.")
    param: str | None = Field(None, description="The request field at fault.")
    code: str | None = Field(None, description="What is wrong, for programs.")


class ErrorBody(BaseModel):
    error: ErrorObject


class Usage(BaseModel):
    type: Literal["duration"] = "duration"
    seconds: int = Field(description="Length of the audio in whole seconds, rounded up.")


class LogProbability(BaseModel):
    """A token of the model, with `include[]=logprobs`."""

    token: str = Field(description="Text of the token; a space begins a word.")
    bytes: list[int] = Field(description="The same in UTF-8.")
    logprob: float = Field(description="Natural logarithm of the model's probability.")


class TranscriptionJson(BaseModel):
    """`response_format=json`."""

    text: str
    logprobs: list[LogProbability] | None = Field(None, description="Present when `include[]` has `logprobs`.")
    usage: Usage


class TokenUsage(BaseModel):
    """What OpenAI's client expects at the end of a stream, in tokens of this server's models."""

    type: Literal["tokens"] = "tokens"
    input_tokens: int = Field(description="Frames of 80 ms that the encoder made of the audio.")
    output_tokens: int = Field(description="Tokens that the decoder wrote.")
    total_tokens: int
    seconds: int = Field(description="Length of the audio in whole seconds, rounded up.")


class StreamEvent(BaseModel):
    """One event of a stream. What is None was not asked for, and is not sent, but for what `_SENT_AS_NULL` names."""

    _SENT_AS_NULL: ClassVar = frozenset[str]()

    @property
    def absent(self) -> set[str]:
        """Fields that are not sent."""
        return {name for name, value in self if value is None} - self._SENT_AS_NULL


class TranscriptDelta(StreamEvent):
    """With `stream`: text that has become final."""

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str
    logprobs: list[LogProbability] | None = Field(None, description="Present when `include[]` has `logprobs`.")


class TranscriptProgress(StreamEvent):
    """With `stream`, when `include[]` has `progress`: how far the transcription is."""

    _SENT_AS_NULL = frozenset({"total_s"})

    type: Literal["transcript.progress"] = "transcript.progress"
    audio_s: float = Field(description="Seconds of audio transcribed so far.")
    total_s: float | None = Field(description="Length of the audio as its file announces it, seconds; null where it does not.")
    windows_done: int = Field(description="Windows that were recognised.")
    windows_planned: int = Field(description="Windows so far; more come as the file is decoded.")


class TranscriptDone(StreamEvent):
    """With `stream`: the end, and the whole text."""

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    usage: TokenUsage
    logprobs: list[LogProbability] | None = Field(None, description="Present when `include[]` has `logprobs`.")
    content: str | dict[str, Any] | None = Field(
        None, description="Present when the request has a `response_format`: the whole answer in it."
    )


class SegmentWord(BaseModel):
    word: str
    start: float = Field(description="Seconds.")
    end: float = Field(description="Seconds.")
    probability: float = Field(description="The model's probability of the least certain token of the word.")


class VerboseSegment(BaseModel):
    id: int
    seek: int = Field(description="Start, hundredths of a second.")
    start: float = Field(description="Seconds.")
    end: float = Field(description="Seconds.")
    text: str
    tokens: list[int] = Field(description="Token ids of the model's vocabulary.")
    temperature: float = Field(description="Always 0: decoding is greedy.")
    avg_logprob: float = Field(description="Mean natural logarithm of the token probabilities.")
    compression_ratio: float = Field(description="Bytes of the text over its bytes when deflated.")
    no_speech_prob: float = Field(description="Always 0: a transducer has no such output.")
    words: list[SegmentWord] = Field(description="Words of the segment, as Whisper has them.")


class VerboseWord(BaseModel):
    word: str
    start: float = Field(description="Seconds.")
    end: float = Field(description="Seconds.")
    confidence: float = Field(description="The model's probability of the least certain token of the word.")


class TranscriptionVerboseJson(BaseModel):
    """`response_format=verbose_json`."""

    task: Literal["transcribe", "translate"]
    language: str = Field(description="English name of the language.")
    duration: float = Field(description="Length of the audio, seconds.")
    text: str
    segments: list[VerboseSegment]
    words: list[VerboseWord] | None = Field(None, description="Present when `timestamp_granularities[]` has `word`.")
    logprobs: list[LogProbability] | None = Field(None, description="Present when `include[]` has `logprobs`.")
    usage: Usage
    warnings: list[str] | None = Field(None, description="Present when the file was damaged: what is missing.")


class TranscriptionDefault(TranscriptionVerboseJson):
    """Without a `response_format`: what clients of this and of other servers look for."""

    language: str = Field(description="ISO 639-1 code.")
    transcription_time: float = Field(description="Seconds that the transcription took.")
    total_request_time_server: float = Field(description="Seconds since the request came in, its upload included.")
    csv_content: str = Field(description="The segments as `csv`.")
    srt_content: str = Field(description="The transcript as `srt`.")


class Model(BaseModel):
    """OpenAI's model object."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time at which this server started.")
    owned_by: str


class ModelList(BaseModel):
    object: Literal["list"] = "list"
    data: list[Model]


class Health(BaseModel):
    status: Literal["ok"] = "ok"


class ReplicaReadiness(BaseModel):
    """One replica of a model."""

    state: str
    device: str
    precision: str
    decoder: str
    detail: str
    batches: int = Field(description="Batches run since it started.")
    windows: int = Field(description="Windows run since it started.")
    largest_batch: int = Field(description="Windows in the largest batch so far.")
    queued: int = Field(description="Windows waiting now.")


class ModelReadiness(BaseModel):
    """One configured model."""

    id: str
    state: str = Field(
        description="`unloaded` (loads when asked for), `starting`, `downloading`, `loading`, `ready` or `failed`."
    )
    detail: str = Field(description="Progress of a download, or why the model could not be had.")
    device: str = Field(description="`cpu` or `cuda`; empty until loaded.")
    precision: str = Field(description="`fp32`, `bf16` or `fp16`; empty until loaded.")
    replicas: list[ReplicaReadiness]


class Readiness(BaseModel):
    ready: bool = Field(description="Every model is loaded, or free to load when asked for, and the server is not shutting down.")
    models: list[ModelReadiness]
