"""All settings of the server. The `args` of the Serve YAML set them; environment variables override the file.

The name of a variable is `PARAKEET_` and the path of the field, levels joined by two underscores:
`PARAKEET_BATCHING__MAX_BATCH_ITEMS=8`. The table in docs/configuration.md is generated from the descriptions in this file by
`python -m tools.settings_table`.
"""

from typing import ClassVar, Literal

from pydantic import Field, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from serve_app.live.windows import MIN_NEW_AUDIO, LiveWindows
from serve_app.output.cues import CueRules
from serve_app.replica_settings import DiarizerSettings as DiarizerSettings
from serve_app.replica_settings import FastPath as FastPath
from serve_app.replica_settings import Name, ReplicaSettings
from serve_app.replica_settings import Precision as Precision
from serve_app.replica_settings import WantedFastPaths as WantedFastPaths
from serve_app.request_settings import AuthSettings as AuthSettings
from serve_app.request_settings import ChannelSettings as ChannelSettings
from serve_app.request_settings import DecodingSettings as DecodingSettings
from serve_app.request_settings import Device as Device
from serve_app.request_settings import IngressSettings as IngressSettings
from serve_app.request_settings import JobSettings as JobSettings
from serve_app.request_settings import LimitSettings as LimitSettings
from serve_app.request_settings import SettingsGroup as _Group
from serve_app.request_settings import SimulationSettings as SimulationSettings
from serve_app.request_settings import TracingSettings as TracingSettings
from serve_app.seed_variables import SeedVariables
from serve_app.window import MAX_WINDOW_S, SAMPLE_RATE

DecoderChoice = Literal["auto", "transducer", "ctc"]
LogFormat = Literal["text", "json"]
CUES = CueRules()
"""Defaults of SubtitleSettings."""


class WindowSettings(_Group):
    """How recordings are cut into windows."""

    MIN_WINDOW_S: ClassVar = 3.0
    """Lower bound of `window_s`, seconds."""
    MIN_OVERLAP_S: ClassVar = 1.5
    """Lower bound of `overlap_s`, seconds."""

    window_s: float = Field(32.0, ge=MIN_WINDOW_S, le=MAX_WINDOW_S, description="Maximum length of a window, seconds.")
    overlap_s: float = Field(
        2.0, ge=MIN_OVERLAP_S, description="Overlap of consecutive windows, seconds; a shorter overlap costs accuracy."
    )

    @model_validator(mode="after")
    def _window_exceeds_overlap(self) -> "WindowSettings":
        if self.overlap_s * 2 > self.window_s:
            raise ValueError("overlap_s must be at most half of window_s")
        return self


class ModelSettings(ReplicaSettings):
    """One model."""

    name: Name = Field(description="Name of the model in requests (field `model`).")
    source: str = Field(
        description="A Hugging Face name (`nvidia/parakeet-tdt-0.6b-v2`), also as `owner/name:file.nemo@revision`; the path of a "
        "`.nemo` file; `bundled` (the demo model, which recognises spoken digits); or `simulated` (no recognition; for capacity "
        "tests)."
    )
    languages: tuple[str, ...] = Field(("en",), min_length=1, description="ISO 639-1 codes of the supported languages.")
    description: str = Field("", description="What the model can do, for the web page and `/v1/models`; empty: its languages.")
    target_wait_s: float = Field(
        30.0,
        gt=0,
        description="Replicas are added, up to `max_replicas`, where the audio of files that is there would take longer than "
        "this, seconds. Not less than loading the model takes: what is done by then needs no replica more.",
    )
    precision: Precision = Field(
        "auto", description="`auto`: on GPUs bf16 if supported, else fp16; on CPUs bf16 if measured faster, else fp32."
    )
    decoder: DecoderChoice = Field(
        "auto",
        description="Head of a model with two, a transducer and CTC; `auto`: the transducer. `ctc` takes no keywords.",
    )
    fast_paths: WantedFastPaths = Field(
        "auto",
        description="Changes to the model that save time: `auto`, `off`, or a list of `features`, `attention`, "
        "`convolution`, `subsampling`, `packed_linear`, `prediction` and `int8`.",
    )
    cpu_threads: int = Field(0, ge=0, description="Threads of a CPU replica; 0: one for a small model, else all usable cores.")
    windows: WindowSettings | None = Field(
        None, description="Windows of this model, with the fields of `windows`; unset: the same as `windows`."
    )
    keyword_weight: float = Field(
        0.5, ge=0, le=1, description="Boost of `keywords[]`; too high a value inserts phrases that were not spoken."
    )


class BatchingSettings(_Group):
    """How a replica forms batches."""

    max_batch_audio_s: float = Field(
        0.0,
        ge=0,
        description="Maximum padded audio per batch (windows times longest window), seconds; 0: what is efficient on the device "
        "and fits into its memory, measured when a model is loaded.",
    )
    target_step_s: float = Field(
        0.25,
        gt=0,
        description="While there are live streams: maximum time that the audio of a batch of several windows takes, seconds.",
    )
    max_batch_items: int = Field(64, ge=1, description="Maximum number of windows per batch.")
    batch_timeout_s: float = Field(
        300.0,
        gt=0,
        description="Maximum duration of a batch, seconds; then the replica is replaced, and its windows are retried.",
    )
    ageing_s: float = Field(
        5.0, gt=0, description="At most one batch in four starts with the oldest window, once that has waited this long, seconds."
    )


class LiveSettings(_Group):
    """Live streams: speech is transcribed while it is spoken, in sliding windows."""

    step_s: float = Field(0.4, gt=0, le=10, description="New audio between two steps, seconds; each step decodes one window.")
    left_s: float = Field(
        8.0, ge=1, le=60, description="Left context of a window, seconds: audio before the first word that is not final."
    )
    right_s: float = Field(
        2.0, ge=0.5, le=30, description="Right context of a window, seconds: a word is final once this much audio follows it."
    )
    longest_window_s: float = Field(
        30.0, ge=5, le=600, description="Maximum length of a window, seconds; streams with a backlog use it."
    )
    endpoint_s: float = Field(0.8, ge=0.1, le=30, description="Silence that ends an utterance, seconds.")
    max_backlog_s: float = Field(
        60.0, ge=10, description="Maximum audio not decoded yet, seconds; with more, the server stops reading."
    )
    max_streams: int = Field(256, ge=1, description="Maximum open streams with audio per ingress replica; more are refused.")
    max_streams_per_address: int = Field(128, ge=1, description="The same, for one client address.")
    max_waiting: int = Field(512, ge=1, description="Maximum connections without audio per ingress replica; more are refused.")
    max_waiting_per_address: int = Field(64, ge=1, description="The same for one client address.")
    max_session_s: float = Field(14_400.0, gt=0, description="Maximum duration of a stream, seconds.")
    max_frame_bytes: int = Field(8_388_608, ge=1_024, description="Maximum size of a message, bytes.")
    idle_s: float = Field(
        60.0, gt=0, description="Maximum time without a message, seconds; after it, the stream is closed with an error."
    )
    config_s: float = Field(20.0, gt=0, description="Maximum time from opening a connection to its first message, seconds.")

    @property
    def windows(self) -> LiveWindows:
        """The lengths of the windows in samples."""
        return LiveWindows(
            step=round(self.step_s * SAMPLE_RATE),
            left=round(self.left_s * SAMPLE_RATE),
            right=round(self.right_s * SAMPLE_RATE),
            max_window=round(self.longest_window_s * SAMPLE_RATE),
        )

    @model_validator(mode="after")
    def _window_has_room(self) -> "LiveSettings":
        if self.left_s + self.right_s + MIN_NEW_AUDIO / SAMPLE_RATE > self.longest_window_s:
            raise ValueError(f"longest_window_s must exceed left_s and right_s together by {MIN_NEW_AUDIO / SAMPLE_RATE:.0f} s")
        return self


class SubtitleSettings(_Group):
    """Rules for the cues of srt and vtt. A request may override `max_lines`, `max_line_chars` and `max_cue_s`."""

    max_lines: int = Field(CUES.max_lines, ge=1, le=10, description="Maximum lines of a cue.")
    max_line_chars: int = Field(
        CUES.max_line_chars, ge=8, le=500, description="Maximum characters of a line; a full-width character counts as two."
    )
    max_cue_s: float = Field(CUES.max_cue_s, ge=1, le=60, description="Maximum duration of a cue, seconds.")
    min_cue_s: float = Field(
        CUES.min_cue_s, gt=0, le=10, description="Minimum duration of a cue, seconds, if the next cue does not start earlier."
    )
    max_chars_per_s: float = Field(
        CUES.max_chars_per_s,
        gt=0,
        description="Maximum reading speed, characters per second; a cue stays longer to keep it, if the next one leaves room.",
    )


class Settings(BaseSettings):
    """All settings: the `args` of the application in the Serve YAML."""

    # Inputs are hidden because the message of an error would show keys.
    model_config = SettingsConfigDict(
        extra="forbid", frozen=True, env_prefix="PARAKEET_", env_nested_delimiter="__", hide_input_in_errors=True
    )

    models: tuple[ModelSettings, ...] = Field(
        (ModelSettings(name="digits", source="bundled"),), min_length=1, description="The models that are served."
    )
    diarizers: tuple[DiarizerSettings, ...] = Field(
        (), description="The diarizers, which find who speaks; requests that name none get the first."
    )
    default_model: str = Field("", description="Model of requests without `model`; empty: the first of `models`.")
    model_aliases: dict[str, str] = Field(
        {"whisper-1": "", "gpt-*transcribe*": "", "gpt-*realtime*": ""},
        description="Model by further names that requests may use; empty: the default model. `*` stands for any text, the first "
        "match counts, and the models' own names have precedence.",
    )
    windows: WindowSettings = Field(WindowSettings(), description="How recordings are cut into windows.")
    batching: BatchingSettings = Field(BatchingSettings(), description="How a replica forms batches.")
    limits: LimitSettings = Field(LimitSettings(), description="Limits of requests.")
    decoding: DecodingSettings = Field(DecodingSettings(), description="How files are decoded.")
    channels: ChannelSettings = Field(ChannelSettings(), description="Recordings whose channels are transcribed one by one.")
    live: LiveSettings = Field(LiveSettings(), description="Live streams.")
    subtitles: SubtitleSettings = Field(SubtitleSettings(), description="Rules for the cues of srt and vtt.")
    auth: AuthSettings = Field(AuthSettings(), description="API keys and their limits.")
    ingress: IngressSettings = Field(IngressSettings(), description="The deployment that serves HTTP and WebSockets.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Level of the server's own log.")
    log_format: LogFormat = Field("text", description="Lines of the log as text, or as one JSON object each.")
    jobs: JobSettings = Field(JobSettings(), description="Jobs: files that are transcribed without an open connection.")
    tracing: TracingSettings = Field(TracingSettings(), description="Traces of requests, for OpenTelemetry.")

    @model_validator(mode="after")
    def _names_are_unique(self) -> "Settings":
        names = [model.name for model in self.models] + [diarizer.name for diarizer in self.diarizers]
        if len(set(names)) != len(names):
            raise ValueError("two models or diarizers have the same name; names must be unique")
        return self

    @model_validator(mode="after")
    def _named_models_exist(self) -> "Settings":
        names = {"", *(model.name for model in self.models)}
        for setting, name in [("default_model", self.default_model), *self.model_aliases.items()]:
            if name not in names:
                raise ValueError(f"{setting}: {name!r} is not the name of one of the models")
        return self

    def windows_for(self, model: ModelSettings) -> WindowSettings:
        """The windows of a model: its own, or those for all models."""
        return model.windows or self.windows

    def max_window_s(self, model: ModelSettings) -> float:
        """Maximum length of all windows that the model gets, from recordings and from live streams, seconds."""
        return max(self.windows_for(model).window_s, self.live.longest_window_s)

    @property
    def default_model_name(self) -> str:
        return self.default_model or self.models[0].name

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Precedence: `PARAKEET_` variables, then the variables in seed_variables.py, then the YAML file.

        So a container is configured without editing files.
        """
        return env_settings, SeedVariables(settings_cls, init_settings), init_settings
