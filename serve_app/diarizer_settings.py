"""Settings of a diarizer."""

from pydantic import Field, field_validator, model_validator

from serve_app.model_source import problem_of
from serve_app.request_settings import Device, SettingsGroup, SimulationSettings


class DiarizerSettings(SettingsGroup):
    """One diarizer, which finds who speaks. Each has its own Serve deployment."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="Name of the diarizer; no model has the same.")
    source: str = Field(
        description="A Hugging Face name (`nvidia/diar_streaming_sortformer_4spk-v2`), also as `owner/name:file.nemo@revision`; "
        "the path of a `.nemo` file; `bundled` (a small one, to try the server); or `simulated` (tells tones apart; for tests)."
    )
    min_replicas: int = Field(
        0, ge=0, description="Replicas that are always loaded; 0: load it on the first request and unload it when idle."
    )
    max_replicas: int = Field(1, ge=1, description="Maximum number of replicas.")
    idle_unload_s: float = Field(
        1800.0, ge=0, description="Replicas above `min_replicas` stop after this time without need, seconds; 0: never."
    )
    cpus_per_replica: float = Field(0.5, ge=0, description="CPUs that Ray's scheduler reserves for a replica; not a limit.")
    gpus_per_replica: float | None = Field(
        None, ge=0, description="GPUs that Ray reserves for a replica. Unset: as for models, with which it shares them."
    )
    device: Device = Field("auto", description="Device of the diarizer; `auto`: the GPU if the replica has one, else the CPU.")
    load_timeout_s: float = Field(
        3600.0, gt=0, description="Maximum duration of a download, seconds; loading the file is not limited."
    )
    simulation: SimulationSettings = Field(SimulationSettings(), description="Durations of a step for `source: simulated`.")

    @field_validator("source")
    @classmethod
    def _source_has_a_known_form(cls, source: str) -> str:
        if problem := problem_of(source):
            raise ValueError(problem)
        return source

    @model_validator(mode="after")
    def _replicas_in_order(self) -> "DiarizerSettings":
        if self.max_replicas < self.min_replicas:
            raise ValueError("max_replicas must be at least min_replicas")
        return self
