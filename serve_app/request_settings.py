"""Settings of what is around the models: limits of requests, API keys, the ingress, decoding, traces."""

from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, IPvAnyNetwork, SecretStr, field_validator

from serve_app import key_entries
from serve_app.jobs import webhook_messages
from serve_app.jobs.webhook_targets import WebhookTargets

Device = Literal["auto", "cpu", "cuda"]


class SettingsGroup(BaseModel):
    """Settings that belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class SimulationSettings(SettingsGroup):
    """Duration of a batch for `source: simulated`: `step_s + seconds_per_audio_s * padded audio seconds`. A step of a diarizer is
    a batch, too."""

    step_s: float = Field(0.05, ge=0, description="Fixed duration of a batch, seconds.")
    seconds_per_audio_s: float = Field(0.001, ge=0, description="Additional seconds per second of padded audio.")
    load_s: float = Field(0.0, ge=0, description="Duration of loading the model, seconds.")


class LimitSettings(SettingsGroup):
    """Limits of requests."""

    max_upload_bytes: int = Field(8_589_934_592, gt=0, description="Maximum size of an upload, bytes; more is 413.")
    max_audio_s: float = Field(86_400.0, gt=0, description="Maximum duration of the audio of a request, seconds; more is 413.")
    upload_pause_s: float = Field(60.0, gt=0, description="Maximum time without data during an upload, seconds; more is 408.")
    request_timeout_s: float = Field(
        21_600.0, gt=0, description="Maximum duration of a request, seconds; more is 408 during the upload, else 504."
    )
    max_requests: int = Field(
        256, ge=1, description="Maximum requests in progress, their uploads complete, per ingress replica; more is 429."
    )
    max_uploads: int = Field(512, ge=1, description="Maximum uploads in progress per ingress replica; more is 429.")
    max_uploads_per_address: int = Field(
        256, ge=1, description="Maximum uploads in progress per client address and ingress replica; more is 429."
    )
    max_windows_in_flight: int = Field(
        512,
        ge=1,
        description="Maximum windows of files in flight per ingress replica, about 2 MB each; shared by the files, one each "
        "at least.",
    )
    model_wait_s: float = Field(
        60.0, gt=0, description="Maximum time that a request waits for a model to load, seconds; after it, 503 with the progress."
    )


class ChannelSettings(SettingsGroup):
    """Recordings whose channels are transcribed one by one."""

    drop_crosstalk: bool = Field(
        True,
        description="A word is left out where another channel has the same one at the same time, 10 dB louder; a request may say "
        "otherwise.",
    )


class DecodingSettings(SettingsGroup):
    """How files are decoded."""

    processes: int = Field(
        0,
        ge=0,
        description="Decoder processes of an ingress replica, about 60 MB each; 0: the cores of the node, shared by its ingress "
        "replicas, at most 32.",
    )


class AuthSettings(SettingsGroup):
    """API keys and their limits."""

    keys: tuple[SecretStr, ...] = Field(
        (),
        description="API keys: `SECRET` or `NAME: SECRET`; `sha256:HEX` in place of a secret is its hash. Every request needs "
        "one, except for `/health`, `/ready`, the page, `/docs` and `/openapi.json`. Empty: no key is needed. Prefer "
        "`keys_file`, or the variable `API_KEY` (keys separated by commas): Ray's dashboard shows the content of the file.",
    )
    keys_file: Path | None = Field(
        None, description="A file with more keys, one a line, on every node with an ingress replica. Read again when it changes."
    )
    metrics_key: SecretStr | None = Field(
        None,
        description="Key of `/metrics`, as in `keys`; no other one opens it then. Unset: it needs a key as other routes do.",
    )
    max_requests: int = Field(
        0,
        ge=0,
        description="Maximum POST requests (with exports) and streams in progress per key name and ingress replica; 0: no limit.",
    )
    max_requests_per_minute: int = Field(
        0,
        ge=0,
        description="Maximum POST requests (with exports) and streams per minute, key name and ingress replica; 0: no limit.",
    )

    @field_validator("keys", mode="before")
    @classmethod
    def _pairs_are_entries(cls, keys: Any) -> Any:
        """`NAME: SECRET` without quotes is a mapping in YAML."""
        if not isinstance(keys, list | tuple):
            return keys
        return [
            f"{next(iter(key))}: {next(iter(key.values()))}" if isinstance(key, dict) and len(key) == 1 else key for key in keys
        ]

    @field_validator("keys")
    @classmethod
    def _keys_are_valid(cls, keys: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        key_entries.parse(key.get_secret_value() for key in keys)
        return keys

    @field_validator("metrics_key")
    @classmethod
    def _metrics_key_is_valid(cls, key: SecretStr | None) -> SecretStr | None:
        key_entries.parse([] if key is None else [key.get_secret_value()])
        return key


class IngressSettings(SettingsGroup):
    """The deployment that serves HTTP and WebSockets."""

    cors_origins: tuple[str, ...] = Field(("*",), description="Origins whose web pages may use the server; `*`: all.")
    trusted_proxies: tuple[IPvAnyNetwork, ...] = Field(
        (),
        description="Addresses and networks of reverse proxies, which put the client's address into `X-Forwarded-For`.",
    )
    replicas: int = Field(
        0,
        ge=0,
        description="Number of ingress replicas; 0: at deployment, on every node one for every 8 CPU cores of the smallest node, "
        "at least one.",
    )
    cpus_per_replica: float = Field(
        0.25, ge=0, description="CPUs that Ray's scheduler reserves for an ingress replica; not a limit."
    )


class TracingSettings(SettingsGroup):
    """Traces of requests, sent by OTLP over HTTP."""

    endpoint: str = Field(
        "",
        pattern=r"^(https?://.+)?$",
        description="Base address of an OpenTelemetry collector, such as `http://collector:4318`; empty: no traces.",
    )
    sample_ratio: float = Field(
        1.0, ge=0, le=1, description="Share of the requests that are traced; a client's `traceparent` decides for its own."
    )
    headers: dict[str, SecretStr] = Field({}, description="Headers for the collector, such as a key.")


class JobSettings(SettingsGroup):
    """Jobs: files that are transcribed without an open connection."""

    directory: Path | None = Field(
        None,
        description="Folder of the uploads, and of the database unless `database_url` is set; on fast local storage, or for a "
        "cluster a folder that all its nodes share. Unset: the server has no jobs.",
    )
    database_url: SecretStr | None = Field(
        None,
        description="PostgreSQL database of the jobs, `postgresql://USER:PASSWORD@HOST/NAME`; needed where the cluster has more "
        "than one node. Unset: SQLite in `directory`.",
    )
    max_running_audio_s: float = Field(
        2400.0,
        gt=0,
        description="Audio of the jobs that an ingress replica transcribes at once, seconds; a job counts with at most a quarter "
        "of it.",
    )
    default_ttl_s: float = Field(
        604_800.0, gt=0, description="How long a job and its result are kept after its end, seconds, where it does not say."
    )
    max_ttl_s: float = Field(2_592_000.0, gt=0, description="Maximum that a job may say, seconds.")
    max_jobs_per_key: int = Field(
        10_000, ge=0, description="Maximum jobs queued and running per key name; more is 429. 0: no limit."
    )
    max_upload_bytes_per_key: int = Field(107_374_182_400, ge=0, description="The same of their uploads, bytes; 0: no limit.")
    max_audio_hours_per_key: float = Field(
        0.0, ge=0, description="The same of their audio, hours, as far as the files state their length; 0: no limit."
    )
    webhook_secrets: tuple[SecretStr, ...] = Field(
        (),
        description="Keys that sign webhooks, `whsec_` and 24 to 64 bytes in base64; each message has a signature by every one, "
        "so that they can be replaced. Empty: no job may have a `webhook_url`.",
    )
    webhook_hosts: tuple[str, ...] = Field(
        (),
        description="Host names, `*.suffix` patterns, addresses and networks that webhooks may go to although they are not "
        "public.",
    )

    @field_validator("directory")
    @classmethod
    def _directory_is_absolute(cls, directory: Path | None) -> Path | None:
        """Ray starts processes in folders of its own."""
        if directory is None:
            return None
        directory = directory.expanduser()
        if not directory.is_absolute():
            raise ValueError(f"it must be an absolute path, or begin with `~`: {directory}")
        return directory

    @field_validator("webhook_secrets")
    @classmethod
    def _secrets_are_valid(cls, secrets: tuple[SecretStr, ...]) -> tuple[SecretStr, ...]:
        for secret in secrets:
            webhook_messages.key_of(secret.get_secret_value())
        return secrets

    @field_validator("webhook_hosts")
    @classmethod
    def _hosts_are_valid(cls, hosts: tuple[str, ...]) -> tuple[str, ...]:
        WebhookTargets.of(hosts)
        return hosts
