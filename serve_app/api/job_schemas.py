"""Wire schemas of jobs."""

from typing import Any, Literal

from pydantic import BaseModel, Field

from serve_app.api.response_formats import ResponseFormat
from serve_app.api.schemas import ChannelNumber, SpeakerName
from serve_app.jobs.model import Delivery, Job, JobStatus
from serve_app.jobs.request import JobRequest

State = Literal["queued", "running", "completed", "failed", "cancelled"]
PriorityName = Literal["normal", "low"]


class JobErrorBody(BaseModel):
    code: str = Field(description="Why the job failed, as an identifier; the same ones as those of failed requests.")
    message: str


class JobDelivery(BaseModel):
    """The delivery of the webhook message of a job."""

    id: str = Field(description="The `webhook-id`, the same in every try.")
    url: str
    state: Literal["waiting", "delivered", "given_up"]
    tries: int
    next_try_at: float | None = Field(description="Seconds since 1970.")
    error: str | None = Field(description="Why the last try failed.")


class JobBody(BaseModel):
    """A job. Points in time are seconds since 1970."""

    id: str
    object: Literal["transcription.job"] = "transcription.job"
    state: State
    model: str
    filename: str = Field(description="The name of the file in the form; empty if it had none.")
    response_format: ResponseFormat | None = Field(description="In which the result is, unless it is asked for in another.")
    priority: PriorityName
    metadata: dict[str, Any] | None
    done_s: float = Field(description="Seconds of the audio that are transcribed.")
    audio_s: float | None = Field(description="Length of the audio, seconds, as far as it is known; exact once completed.")
    queue_position: int | None = Field(description="1: next; only while the job is queued.")
    created_at: float
    started_at: float | None
    ended_at: float | None
    expires_at: float | None = Field(description="When the job and its result are deleted; null until it has ended.")
    error: JobErrorBody | None
    webhook_url: str | None
    webhook_deliveries: list[JobDelivery]


class JobList(BaseModel):
    """A page of jobs, newest first."""

    object: Literal["list"] = "list"
    data: list[JobBody]
    has_more: bool
    next: int | None = Field(description="The value of `before` for the next page; null on the last one.")


class JobSegment(BaseModel):
    """A segment that does not change any more."""

    id: int
    start: float
    end: float
    text: str
    channel: ChannelNumber = None
    speaker: SpeakerName = None


class JobRestart(BaseModel):
    """The segments that were sent are void: they come again from the first on."""

    reason: str = "The server, the model, its windows or what is known of the speakers have changed since the work began."


def body_of(status: JobStatus) -> JobBody:
    """A job with all that is known of it."""
    job, request = status.job, JobRequest.from_json(status.job.request)
    return JobBody(
        id=job.job_id,
        state=job.state.value,
        model=request.model,
        filename=request.filename,
        response_format=request.rendering.get("response_format"),
        priority="low" if job.priority else "normal",
        metadata=None if job.metadata is None else dict(job.metadata),
        done_s=round(job.done_s, 3),
        audio_s=None if job.audio_s is None else round(job.audio_s, 3),
        queue_position=status.queue_position,
        created_at=job.created_at_s,
        started_at=job.started_at_s,
        ended_at=job.ended_at_s,
        expires_at=job.expires_at_s,
        error=None if job.error is None else JobErrorBody(code=job.error.code, message=job.error.message),
        webhook_url=job.webhook_url,
        webhook_deliveries=[_delivery(each) for each in status.deliveries],
    )


def body_alone(job: Job) -> JobBody:
    """A job without its queue position and its deliveries, which take a query each."""
    return body_of(JobStatus(job, None, ()))


def _delivery(delivery: Delivery) -> JobDelivery:
    is_waiting = delivery.next_try_at_s is not None
    return JobDelivery(
        id=delivery.delivery_id,
        url=delivery.webhook_url,
        state="delivered" if delivery.is_delivered else "waiting" if is_waiting else "given_up",
        tries=delivery.tries,
        next_try_at=delivery.next_try_at_s,
        error=delivery.error,
    )
