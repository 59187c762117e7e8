"""Settings of what runs in replicas of its own: what models and diarizers have in common, and those of a diarizer."""

from typing import Annotated, Literal, Self

from pydantic import Field, field_validator, model_validator

from serve_app.model_source import problem_of
from serve_app.request_settings import Device, SettingsGroup, SimulationSettings

Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]

Precision = Literal["auto", "fp32", "bf16", "fp16"]
FastPath = Literal["features", "attention", "convolution", "subsampling", "packed_linear", "prediction", "int8"]
WantedFastPaths = Literal["auto", "off"] | tuple[FastPath, ...]


class ReplicaSettings(SettingsGroup):
    """A model or diarizer. Each has its own Serve deployment."""

    name: Name
    source: str
    min_replicas: int = Field(
        0, ge=0, description="Replicas that are always loaded; 0: load it on the first request and unload it when idle."
    )
    max_replicas: int = Field(1, ge=1, description="Maximum number of replicas.")
    idle_unload_s: float = Field(
        1800.0,
        ge=0,
        description="Replicas above `min_replicas` stop once the load has not needed them for this long, seconds; 0: never.",
    )
    cpus_per_replica: float = Field(0.5, ge=0, description="CPUs that Ray's scheduler reserves for a replica; not a limit.")
    gpus_per_replica: float | None = Field(
        None,
        ge=0,
        description="GPUs that Ray reserves for a replica. A fraction also limits a model to that share of the GPU's memory. "
        "Unset: 1, or an equal share of models and diarizers if there are too few.",
    )
    device: Device = Field("auto", description="`auto`: the GPU if the replica has one, else the CPU.")
    load_timeout_s: float = Field(
        3600.0, gt=0, description="Maximum duration of a download, seconds; loading the file is not limited."
    )
    simulation: SimulationSettings = Field(SimulationSettings(), description="Durations for `source: simulated`.")

    @field_validator("source")
    @classmethod
    def _source_has_a_known_form(cls, source: str) -> str:
        if problem := problem_of(source):
            raise ValueError(problem)
        return source

    @model_validator(mode="after")
    def _replicas_in_order(self) -> Self:
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must be at least min_replicas")
        return self


class DiarizerSettings(ReplicaSettings):
    """One diarizer, which finds who speaks."""

    name: Name = Field(description="Name of the diarizer; no model has the same.")
    source: str = Field(
        description="A Hugging Face name (`nvidia/diar_streaming_sortformer_4spk-v2`), also as `owner/name:file.nemo@revision`; "
        "the path of a `.nemo` file; `bundled` (a small one, to try the server); or `simulated` (tells tones apart; for tests)."
    )
    precision: Precision = Field(
        "auto",
        description="`auto`: fp32 on GPUs; on CPUs bf16 if measured faster, else fp32. Name one where replicas run on different "
        "kinds of CPUs, so that they find the same.",
    )
    fast_paths: WantedFastPaths = Field(
        "auto",
        description="As for a model: `auto`, `off`, or a list of `attention`, `convolution`, `subsampling`, `packed_linear`.",
    )
    chunk_s: float | None = Field(
        None,
        ge=0.48,
        le=90,
        description="New audio of a step, seconds. A step also repeats what the diarizer remembers, so longer chunks cost less, "
        "and segments of a stream come later. Unset: as the file says; 15 s, if it does not.",
    )
