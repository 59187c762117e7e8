"""Jobs as the store keeps them: recordings that are transcribed without an open connection. All classes are frozen.

    queued ──▶ running ──▶ completed | failed
       ▲          │  │
       └──────────┘  └──▶ cancelled ◀── queued

Points in time are seconds since 1970. Positions and lengths of audio are seconds of the recording.
"""

import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from enum import IntEnum, StrEnum
from typing import Any

Json = Mapping[str, Any]
"""A JSON object."""

MAX_LOST_WORKERS = 3
"""A job fails when so many workers in a row were lost with it, none of which got further than the one before."""


class JobState(StrEnum):
    QUEUED = "queued"
    RUNNING = "running"
    COMPLETED = "completed"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_ended(self) -> bool:
        return self not in (JobState.QUEUED, JobState.RUNNING)


class Priority(IntEnum):
    """Lower is more urgent."""

    NORMAL = 0
    LOW = 1


class LeaseLost(Exception):
    """The lease is no longer the caller's: it expired and was taken over, or the job was cancelled. Nothing was written, and the
    caller must stop its work."""


@dataclass(frozen=True, slots=True)
class Idempotency:
    """An `Idempotency-Key`."""

    key: str
    digest: str
    """Of everything else in the request, to recognise a key that is used for another request."""


@dataclass(frozen=True, slots=True)
class NewJob:
    """A job that is to be created. Its upload is stored already."""

    job_id: str
    owner: str
    """Name of the API key that makes it."""
    request: Json
    """What the client asked for: the fields of a transcription."""
    upload_bytes: int
    ttl_s: float
    """How long the job and its result are kept after the end, seconds."""
    audio_s: float | None = None
    """Length of the audio that the file states, seconds; None: none."""
    priority: Priority = Priority.NORMAL
    metadata: Json | None = None
    webhook_url: str | None = None
    idempotency: Idempotency | None = None


@dataclass(frozen=True, slots=True)
class OwnerLimits:
    """Limits of what an owner may have queued and running, the new job included; None: no limit."""

    jobs: int | None = None
    upload_bytes: int | None = None
    audio_s: float | None = None
    """Jobs whose length is not known count nothing."""


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed, as the API's error object has it."""

    code: str
    message: str


@dataclass(frozen=True, slots=True)
class Job:
    """A job, as it was when it was read."""

    job_id: str
    number: int
    """Jobs are numbered in the order in which they were created, from 1; there may be gaps."""
    owner: str
    state: JobState
    priority: Priority
    request: Json
    metadata: Json | None
    webhook_url: str | None
    ttl_s: float
    upload_bytes: int
    audio_s: float | None
    """Length of the audio, seconds; until the job is completed, what the file states or what has been seen of it."""
    done_s: float
    """Seconds of it that are transcribed."""
    generation: int
    """How often the work has begun from the start. Text of an earlier generation is void."""
    part_count: int
    """Parts of the checkpoint."""
    lost_workers: int
    """Workers in a row that were lost with this job and got no further than the one before."""
    created_at_s: float
    started_at_s: float | None
    """When it was first claimed."""
    ended_at_s: float | None
    expires_at_s: float | None
    """When the job and its result are deleted; None until it has ended."""
    error: JobError | None


@dataclass(frozen=True, slots=True)
class Delivery:
    """The delivery of one webhook message. It outlives its job until it is settled."""

    delivery_id: str
    """The `webhook-id`, the same in every try."""
    job_id: str
    state: JobState
    """In which the job ended."""
    metadata: Json | None
    webhook_url: str
    created_at_s: float
    """When the job ended."""
    tries: int
    next_try_at_s: float | None
    """None: settled."""
    is_delivered: bool
    error: str | None
    """Why the last try failed."""


@dataclass(frozen=True, slots=True)
class JobStatus:
    """All that an owner may want to know of a job."""

    job: Job
    queue_position: int | None
    """1: next. None if the job is not queued; exact up to `MAX_POSITION` of the store."""
    deliveries: tuple[Delivery, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """The right to work on a job. Its token is a new random one with every claim, so an old worker is known as such."""

    job_id: str
    token: str


@dataclass(frozen=True, slots=True)
class Provenance:
    """What a checkpoint's tokens depend on besides the recording. Work goes on only where all of it is the same."""

    model: str
    """Name and revision."""
    windows: str
    """Settings of the windows."""
    version: str
    """Of this server."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """Work that is done, as parts in the order of the recording, from part `first` on. A part is opaque to the store; it
    holds, for instance, the tokens of one window."""

    generation: int
    provenance: Provenance | None
    """None before the first worker has begun."""
    parts: tuple[bytes, ...]
    first: int = 0


@dataclass(frozen=True, slots=True)
class Completed:
    """The end of a job that went well."""

    result: bytes
    """The transcript, in an encoding of the caller's."""
    audio_s: float


Outcome = Completed | JobError


@dataclass(frozen=True, slots=True)
class Swept:
    """What a sweep did."""

    requeued: tuple[str, ...]
    """Ids of jobs whose worker was lost."""
    failed: tuple[Job, ...]
    """Jobs that lost their last worker."""
    expired: tuple[str, ...]
    """Ids of jobs that are deleted now."""


def new_id(prefix: str) -> str:
    """An id that cannot be guessed, and that may be the name of a file."""
    return f"{prefix}_{uuid.uuid4().hex}"
