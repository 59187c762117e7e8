"""The one settings tree: `args` in the Serve YAML are the base, environment variables override them.

A variable is `PARAKEET_` and the path of the field, levels joined by two underscores: `PARAKEET_BATCHING__MAX_BATCH_ITEMS=8`.
docs/configuration.md lists every field; a test compares the two.
"""

from pathlib import Path
from typing import ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, field_validator, model_validator
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from serve_app.live.windows import MIN_NEW_AUDIO, LiveWindows
from serve_app.output.cues import CueRules
from serve_app.seed_variables import SeedVariables
from serve_app.window import SAMPLE_RATE

Precision = Literal["auto", "fp32", "bf16", "fp16"]
Device = Literal["auto", "cpu", "cuda"]
CUES = CueRules()


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class SimulationSettings(_Group):
    """Cost of a batch for `source: simulated`: `step_s + seconds_per_audio_s * padded audio seconds`."""

    step_s: float = Field(0.05, ge=0, description="Fixed seconds per batch.")
    seconds_per_audio_s: float = Field(0.001, ge=0, description="Seconds per second of padded audio.")
    load_s: float = Field(0.0, ge=0, description="Seconds that loading takes.")


class WindowSettings(_Group):
    """How recordings are cut into windows."""

    MIN_WINDOW_S: ClassVar = 3.0
    MAX_WINDOW_S: ClassVar = 600.0
    MIN_OVERLAP_S: ClassVar = 1.5

    window_s: float = Field(32.0, ge=MIN_WINDOW_S, le=MAX_WINDOW_S, description="Maximum length of a window, seconds.")
    overlap_s: float = Field(
        2.0, ge=MIN_OVERLAP_S, description="Overlap of neighbouring windows, seconds; a shorter one costs accuracy."
    )

    @model_validator(mode="after")
    def _window_exceeds_overlap(self) -> "WindowSettings":
        if self.overlap_s * 2 > self.window_s:
            raise ValueError("overlap_s must be at most half of window_s")
        return self


class ModelSettings(_Group):
    """One model, served by a deployment of its own."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name that requests use in `model`.")
    source: str = Field(
        description="A hub name (`nvidia/parakeet-tdt-0.6b-v2`), the path of a `.nemo` file, `bundled` (the demo model, which "
        "recognises spoken digits) or `simulated` (no recognition; for capacity tests)."
    )
    languages: tuple[str, ...] = Field(
        ("en",), min_length=1, description="ISO 639-1 codes of the languages that the model supports."
    )
    min_replicas: int = Field(
        0, ge=0, description="Replicas that stay loaded; 0 loads the model on the first request and unloads it when idle."
    )
    max_replicas: int = Field(1, ge=1, description="Maximum number of replicas.")
    idle_unload_s: float = Field(
        1800.0, ge=0, description="Seconds without work before replicas above `min_replicas` stop; 0 keeps them."
    )
    cpus_per_replica: float = Field(0.5, ge=0, description="CPUs that Ray reserves to schedule a replica; not a limit.")
    gpus_per_replica: float | None = Field(
        None,
        ge=0,
        description="GPUs that Ray reserves for a replica, fractions allowed; unset is a whole GPU if there is one for each such "
        "model, else an equal share.",
    )
    device: Device = Field("auto", description="Where the model runs; `auto`: on the GPU if the replica has one.")
    precision: Precision = Field(
        "auto", description="`auto`: bf16 on GPUs that have it, else fp16; on CPUs bf16 if measured faster."
    )
    cpu_threads: int = Field(0, ge=0, description="Threads of a CPU replica; 0: all cores it may use, one for a small model.")
    load_timeout_s: float = Field(3600.0, gt=0, description="Maximum duration of a download, seconds.")
    windows: WindowSettings | None = Field(
        None, description="How recordings are cut for this model; unset: as `windows` of the root says."
    )
    keyword_weight: float = Field(
        0.5,
        ge=0,
        le=1,
        description="Weight of `keywords[]`: a higher one helps with phrases that are said, and harms with others.",
    )
    simulation: SimulationSettings = Field(SimulationSettings(), description="Costs for `source: simulated`.")

    @model_validator(mode="after")
    def _replicas_in_order(self) -> "ModelSettings":
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must be at least min_replicas")
        return self


class BatchingSettings(_Group):
    """How a replica forms batches."""

    max_batch_audio_s: float = Field(
        0.0,
        ge=0,
        description="Maximum padded audio per batch, seconds (longest window times windows); 0: 600 on a GPU, 60 on a CPU.",
    )
    max_batch_items: int = Field(64, ge=1, description="Maximum number of windows per batch.")
    batch_timeout_s: float = Field(
        300.0,
        gt=0,
        description="Maximum duration of a batch, seconds; then the replica is replaced, and its windows are retried.",
    )
    ageing_s: float = Field(
        5.0,
        gt=0,
        description="Every fourth batch starts with the oldest window once that has waited this long, seconds.",
    )


class LimitSettings(_Group):
    """Limits of requests."""

    max_upload_bytes: int = Field(8_589_934_592, gt=0, description="Maximum size of an upload; more is 413.")
    max_audio_s: float = Field(
        86_400.0, gt=0, description="Maximum length of the audio, seconds, however small its file; more is 413."
    )
    upload_pause_s: float = Field(60.0, gt=0, description="Maximum pause of an upload, seconds; then 408.")
    request_timeout_s: float = Field(
        21_600.0, gt=0, description="Maximum duration of a request, seconds: then 408 if it is still being uploaded, else 504."
    )
    max_requests: int = Field(256, ge=1, description="Transcriptions in progress per ingress replica; more is 429.")
    max_windows_in_flight: int = Field(
        256,
        ge=1,
        description="Windows that one ingress replica may have with the models at once. Requests share them equally and wait for "
        "theirs. A window takes about 2 MB.",
    )
    model_wait_s: float = Field(
        60.0, gt=0, description="Maximum wait of a request for a model to load, seconds; then 503 with the progress."
    )


class LiveSettings(_Group):
    """Live streams: speech that is transcribed while it is spoken."""

    step_s: float = Field(0.4, gt=0, le=10, description="New audio per step, seconds; each step decodes one window.")
    left_s: float = Field(
        8.0, ge=1, le=60, description="Left context of a window: audio before the first word that is not final, seconds."
    )
    right_s: float = Field(2.0, ge=0.5, le=30, description="Right context: audio after a word before it is final, seconds.")
    longest_window_s: float = Field(
        30.0, ge=5, le=600, description="Maximum length of a window, seconds; streams with a backlog use it."
    )
    endpoint_s: float = Field(0.8, ge=0.1, le=30, description="Silence that ends an utterance, seconds.")
    max_backlog_s: float = Field(
        60.0, ge=10, description="Maximum audio that is not decoded yet, seconds; beyond it, the server stops reading."
    )
    max_streams: int = Field(256, ge=1, description="Open streams per ingress replica; more is refused.")
    max_session_s: float = Field(14_400.0, gt=0, description="Maximum duration of a stream, seconds.")
    max_frame_bytes: int = Field(8_388_608, ge=1_024, description="Maximum size of a message.")
    idle_s: float = Field(
        60.0, gt=0, description="Maximum time without a message, seconds; then the stream is closed with an error."
    )
    config_s: float = Field(20.0, gt=0, description="Maximum time until the first message, seconds.")

    @property
    def windows(self) -> LiveWindows:
        """The lengths in samples."""
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
    """Rules for the cues of srt and vtt; a request may override the first three."""

    max_lines: int = Field(CUES.max_lines, ge=1, le=10, description="Maximum lines of a cue.")
    max_line_chars: int = Field(
        CUES.max_line_chars, ge=8, le=500, description="Maximum characters of a line; full-width ones count as two."
    )
    max_cue_s: float = Field(CUES.max_cue_s, ge=1, le=60, description="Maximum duration of a cue, seconds.")
    min_cue_s: float = Field(
        CUES.min_cue_s, gt=0, le=10, description="Minimum duration of a cue, seconds, where the next one leaves room."
    )
    max_chars_per_s: float = Field(
        CUES.max_chars_per_s,
        gt=0,
        description="Reading speed, characters a second; a cue stays longer where the next one leaves room.",
    )


class AuthSettings(_Group):
    """API keys and their limits."""

    keys: tuple[SecretStr, ...] = Field(
        (),
        description="API keys. Every request needs one, except for `/health`, the page, `/docs` and `/openapi.json`. Empty: the "
        "server is open. Better in the environment (`API_KEY`, several with commas between): Ray's dashboard shows the file.",
    )
    max_requests: int = Field(
        0,
        ge=0,
        description="POST requests (exports too) and streams that a key may have in progress per ingress replica; 0: no limit.",
    )
    max_requests_per_minute: int = Field(
        0, ge=0, description="POST requests (exports too) and streams per minute of a key per ingress replica; 0: no limit."
    )


class IngressSettings(_Group):
    """The HTTP side."""

    cors_origins: tuple[str, ...] = Field(("*",), description="Origins whose web pages may read the responses; `*`: all.")

    replicas: int = Field(1, ge=0, description="Ingress replicas; 0: one on every node that the cluster has at the start.")
    cpus_per_replica: float = Field(0.25, ge=0, description="CPUs that Ray reserves to schedule an ingress replica; not a limit.")


def _default_models() -> tuple[ModelSettings, ...]:
    return (ModelSettings(name="digits", source="bundled"),)


class Settings(BaseSettings):
    """Root of the tree, the `args` of the application."""

    model_config = SettingsConfigDict(extra="forbid", frozen=True, env_prefix="PARAKEET_", env_nested_delimiter="__")

    models: tuple[ModelSettings, ...] = Field(
        default_factory=_default_models, min_length=1, description="The models that are served."
    )
    default_model: str = Field(
        "", description="Model of a request that names none, or `whisper-1`; empty is the first of `models`."
    )
    windows: WindowSettings = Field(WindowSettings(), description="How recordings are cut into windows.")
    batching: BatchingSettings = Field(BatchingSettings(), description="How a replica forms batches.")
    limits: LimitSettings = Field(LimitSettings(), description="Limits of requests.")
    live: LiveSettings = Field(LiveSettings(), description="Live streams.")
    subtitles: SubtitleSettings = Field(SubtitleSettings(), description="Rules for the cues of srt and vtt.")
    auth: AuthSettings = Field(AuthSettings(), description="API keys and their limits.")
    ingress: IngressSettings = Field(IngressSettings(), description="The HTTP side.")
    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = Field("INFO", description="Level of the server's own log.")

    @field_validator("models")
    @classmethod
    def _names_are_unique(cls, models: tuple[ModelSettings, ...]) -> tuple[ModelSettings, ...]:
        names = [model.name for model in models]
        if len(set(names)) != len(names):
            raise ValueError("two models have the same name")
        return models

    @model_validator(mode="after")
    def _default_model_exists(self) -> "Settings":
        if self.default_model and self.default_model not in {model.name for model in self.models}:
            raise ValueError(f"default_model {self.default_model!r} is not among models")
        return self

    def windows_for(self, model: ModelSettings) -> WindowSettings:
        """How recordings are cut for a model."""
        return model.windows or self.windows

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
        """The environment wins over the YAML, so that a container is set up without editing files; in it, our own names win."""
        return env_settings, SeedVariables(settings_cls, init_settings), init_settings


def bundled_model_path() -> Path:
    """Path of the bundled model."""
    return Path(__file__).parent / "bundled" / "digits.nemo"
