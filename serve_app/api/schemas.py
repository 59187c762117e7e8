"""Wire schemas of responses, with OpenAI's names; the domain types are in `transcript.py`."""

from typing import Annotated, Any, ClassVar, Literal

from pydantic import BaseModel, Field


class ErrorObject(BaseModel):
    """OpenAI's error object."""

    message: str = Field(description="What is wrong, as text.")
    type: str = Field(description="`invalid_request_error`, `rate_limit_error` or `server_error`.")
    param: str | None = Field(None, description="The request field at fault.")
    code: str | None = Field(None, description="What is wrong, as an identifier that does not change.")


class ErrorBody(BaseModel):
    error: ErrorObject


class Usage(BaseModel):
    type: Literal["duration"] = "duration"
    seconds: int = Field(description="Length of the audio in whole seconds, rounded up.")


class LogProbability(BaseModel):
    """A token of the model, with `include[]=logprobs`."""

    token: str = Field(description="Text of the token; the first token of a word begins with a space.")
    bytes: list[int] = Field(description="The text in UTF-8.")
    logprob: float = Field(description="Natural logarithm of the model's probability.")


ChannelNumber = Annotated[
    int | None,
    Field(exclude_if=lambda channel: channel is None, description="Present with `multichannel`: a channel of the file, from 0."),
]
SpeakerName = Annotated[
    str | None,
    Field(exclude_if=lambda speaker: speaker is None, description="Present where it is known: a known name, or A, B, ..."),
]


class ChannelText(BaseModel):
    """A channel of the recording, in `json`."""

    channel: int
    text: str


class TranscriptionJson(BaseModel):
    """`response_format=json`."""

    text: str
    channels: list[ChannelText] | None = Field(None, description="Present with `multichannel`: each channel by itself.")
    logprobs: list[LogProbability] | None = Field(None, description="Present when `include[]` has `logprobs`.")
    usage: Usage


class TokenUsage(BaseModel):
    """Usage in the last event of a stream, counted in encoder frames and tokens of the model."""

    type: Literal["tokens"] = "tokens"
    input_tokens: int = Field(description="Encoder frames of the audio, 80 ms each.")
    output_tokens: int = Field(description="Tokens of the transcript.")
    total_tokens: int
    seconds: int = Field(description="Length of the audio in whole seconds, rounded up.")


class StreamEvent(BaseModel):
    """One event of a stream. Fields that are None are not sent."""

    _SENT_AS_NULL: ClassVar = frozenset[str]()
    """Fields that are sent as null instead."""

    @property
    def absent(self) -> set[str]:
        """Fields that are not sent."""
        return {name for name, value in self if value is None} - self._SENT_AS_NULL


class TranscriptDelta(StreamEvent):
    """With `stream`: text that is final."""

    type: Literal["transcript.text.delta"] = "transcript.text.delta"
    delta: str
    channel: ChannelNumber = None
    speaker: SpeakerName = None
    segment_id: str | None = Field(None, description="With `diarized_json`: the `id` of the segment that this is the text of.")
    logprobs: list[LogProbability] | None = Field(None, description="Present when `include[]` has `logprobs`.")


class TranscriptSegment(StreamEvent):
    """A segment of `diarized_json`; with `stream` also an event."""

    type: Literal["transcript.text.segment"] = "transcript.text.segment"
    id: str
    start: float = Field(description="Seconds.")
    end: float = Field(description="Seconds.")
    text: str
    speaker: str = Field(description="A known name, or A, B, ...; `unknown` where `diarize=optional` found no diarizer.")


class TranscriptionDiarizedJson(BaseModel):
    """`response_format=diarized_json`."""

    task: Literal["transcribe"]
    duration: float = Field(description="Length of the audio, seconds.")
    text: str
    segments: list[TranscriptSegment]
    usage: Usage
    warnings: list[str] | None = Field(None, description="Present if there are any, such as that the speakers are unknown.")


class TranscriptProgress(StreamEvent):
    """With `stream`, when `include[]` has `progress`: progress of the transcription."""

    _SENT_AS_NULL = frozenset({"total_s"})

    type: Literal["transcript.progress"] = "transcript.progress"
    audio_s: float = Field(description="Seconds of audio transcribed so far.")
    total_s: float | None = Field(description="Length of the audio according to the file's header, seconds; null if unknown.")
    windows_done: int = Field(description="Windows transcribed so far.")
    windows_planned: int = Field(description="Windows cut so far; it grows while the file is decoded.")


class TranscriptDone(StreamEvent):
    """With `stream`: the last event, with the whole text."""

    type: Literal["transcript.text.done"] = "transcript.text.done"
    text: str
    usage: TokenUsage
    logprobs: list[LogProbability] | None = Field(None, description="Present when `include[]` has `logprobs`.")
    content: str | dict[str, Any] | None = Field(
        None, description="Present when the request has a `response_format`: the whole transcript in it."
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
    compression_ratio: float = Field(description="Length of the text divided by its length after deflate, in bytes.")
    no_speech_prob: float = Field(description="Always 0: a transducer has no such output.")
    words: list[SegmentWord] = Field(description="Words of the segment, in the form of Whisper's own output.")
    channel: ChannelNumber = None
    speaker: SpeakerName = None


class VerboseWord(BaseModel):
    word: str
    start: float = Field(description="Seconds.")
    end: float = Field(description="Seconds.")
    confidence: float = Field(description="The model's probability of the least certain token of the word.")
    channel: ChannelNumber = None
    speaker: SpeakerName = None


class ChannelTranscript(ChannelText):
    """A channel of the recording, in `verbose_json`."""

    segments: list[VerboseSegment]
    words: list[VerboseWord] | None = Field(None, description="Present when `timestamp_granularities[]` has `word`.")


class TranscriptionVerboseJson(BaseModel):
    """`response_format=verbose_json`."""

    task: Literal["transcribe", "translate"]
    language: str = Field(description="English name of the language.")
    duration: float = Field(description="Length of the audio, seconds.")
    text: str
    segments: list[VerboseSegment]
    words: list[VerboseWord] | None = Field(None, description="Present when `timestamp_granularities[]` has `word`.")
    channels: list[ChannelTranscript] | None = Field(None, description="Present with `multichannel`: each channel by itself.")
    logprobs: list[LogProbability] | None = Field(None, description="Present when `include[]` has `logprobs`.")
    usage: Usage
    warnings: list[str] | None = Field(
        None, description="Present when parts of the file could not be decoded, or speakers are unknown."
    )


class TranscriptionDefault(TranscriptionVerboseJson):
    """Without a `response_format`: `verbose_json` and the fields that clients of other servers expect."""

    language: str = Field(description="ISO 639-1 code.")
    transcription_time: float = Field(description="Duration of the transcription, seconds.")
    total_request_time_server: float = Field(description="Duration of the request including its upload, seconds.")
    csv_content: str = Field(description="The segments as `csv`.")
    srt_content: str = Field(description="The transcript as `srt`.")


class Model(BaseModel):
    """OpenAI's model object, with what the model can do."""

    id: str
    object: Literal["model"] = "model"
    created: int = Field(description="Unix time at which this server started.")
    owned_by: str
    languages: list[str] = Field(description="ISO 639-1 codes of the supported languages.")
    description: str = Field(description="What the model can do; empty: speech in its languages.")
    diarizers: list[str] = Field(description="Names of the diarizers that can tell who speaks; empty: `diarize` is refused.")


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
    fast_paths: list[str] = Field(description="Changes to the model that save time, as far as they passed their check.")
    fast_paths_left_out: list[str] = Field(description="The others that were wanted, `name: reason`.")
    detail: str
    batches: int = Field(description="Batches run since the replica started.")
    windows: int = Field(description="Windows run since the replica started.")
    largest_batch: int = Field(description="Windows in the largest batch so far.")
    max_batch_audio_s: float = Field(description="Maximum padded audio of a batch, seconds.")
    queued: int = Field(description="Windows waiting now.")


class ModelReadiness(BaseModel):
    """One configured model."""

    id: str
    state: str = Field(
        description="`unloaded` (loads on the first request), `starting`, `downloading`, `loading`, `ready` or `failed`."
    )
    detail: str = Field(description="Progress of a download, or why the model is unavailable.")
    device: str = Field(description="`cpu` or `cuda`; empty until loaded.")
    precision: str = Field(description="`fp32`, `bf16` or `fp16`; empty until loaded.")
    replicas: list[ReplicaReadiness]


class DiarizerReadiness(BaseModel):
    """One configured diarizer."""

    id: str
    state: str = Field(description="As of a model.")
    detail: str = Field(description="Progress of a download, or why the diarizer is unavailable.")
    device: str = Field(description="`cpu` or `cuda`; empty until loaded.")
    precision: str = Field(description="Empty until loaded.")
    replicas: int
    steps: int = Field(description="Chunks processed by these replicas.")


class Readiness(BaseModel):
    ready: bool = Field(description="All models and diarizers are loaded or load on demand; the server is not shutting down.")
    models: list[ModelReadiness] | None = Field(None, description="Absent where the server has keys and the request has none.")
    diarizers: list[DiarizerReadiness] | None = Field(None, description="As `models`; absent too where there are none.")
