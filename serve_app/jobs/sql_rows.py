"""Rows of the tables `jobs` and `deliveries` to what they mean, and back."""

import json
from dataclasses import asdict

from serve_app.jobs.database import Row
from serve_app.jobs.model import Delivery, Job, JobError, JobState, Json, NewJob, Priority, Provenance


def job_of(row: Row) -> Job:
    """The job of a row with all columns."""
    return Job(
        job_id=row["job_id"],
        number=row["number"],
        owner=row["owner"],
        state=JobState(row["state"]),
        priority=Priority(row["priority"]),
        request=json.loads(row["request"]),
        metadata=_from_text(row["metadata"]),
        webhook_url=row["webhook_url"],
        ttl_s=row["ttl_s"],
        upload_bytes=row["upload_bytes"],
        audio_s=row["audio_s"],
        done_s=row["done_s"],
        generation=row["generation"],
        part_count=row["part_count"],
        lost_workers=row["lost_workers"],
        created_at_s=row["created_at_s"],
        started_at_s=row["started_at_s"],
        ended_at_s=row["ended_at_s"],
        expires_at_s=row["expires_at_s"],
        error=None if row["error_code"] is None else JobError(row["error_code"], row["error_message"]),
    )


def columns_of(new: NewJob) -> Row:
    """Values of the columns that a new job states itself."""
    return {
        "job_id": new.job_id,
        "owner": new.owner,
        "priority": int(new.priority),
        "request": json.dumps(dict(new.request)),
        "metadata": _to_text(new.metadata),
        "webhook_url": new.webhook_url,
        "ttl_s": new.ttl_s,
        "upload_bytes": new.upload_bytes,
        "audio_s": new.audio_s,
        "idempotency_key": new.idempotency.key if new.idempotency else None,
        "idempotency_digest": new.idempotency.digest if new.idempotency else None,
    }


def delivery_of(row: Row) -> Delivery:
    """The delivery of a row with all columns."""
    return Delivery(
        delivery_id=row["delivery_id"],
        job_id=row["job_id"],
        state=JobState(row["state"]),
        metadata=_from_text(row["metadata"]),
        webhook_url=row["webhook_url"],
        created_at_s=row["created_at_s"],
        tries=row["tries"],
        next_try_at_s=row["next_try_at_s"],
        is_delivered=bool(row["is_delivered"]),
        error=row["error"],
    )


def provenance_of(text: str | None) -> Provenance | None:
    """The provenance in the column of that name."""
    return None if text is None else Provenance(**json.loads(text))


def provenance_text(provenance: Provenance) -> str:
    """The column of a provenance."""
    return json.dumps(asdict(provenance))


def _to_text(value: Json | None) -> str | None:
    return None if value is None else json.dumps(dict(value))


def _from_text(text: str | None) -> Json | None:
    return None if text is None else json.loads(text)
