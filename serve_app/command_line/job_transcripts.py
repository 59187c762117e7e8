"""`transcribe --jobs`: transcripts by way of the server's jobs, which outlive this program.

The metadata of each job has a digest of its recording and its options. By it, the next call finds the jobs of this one, however
this one ends: the server is the only place where anything is kept.
"""

import hashlib
import json
from collections.abc import Sequence
from pathlib import Path

from serve_app.command_line.client import Failure, file_name
from serve_app.command_line.job_client import MAX_FOLLOWED, Job, JobClient
from serve_app.command_line.job_display import forget
from serve_app.command_line.options import Fields
from serve_app.command_line.parallel import in_parallel
from serve_app.command_line.progress import ProgressDisplay
from serve_app.command_line.recordings import Recording, Source
from serve_app.command_line.transcripts import write_transcripts

DIGEST = "transcribe_digest"
"""Key in the metadata."""


def transcribe_by_jobs(
    recordings: Sequence[Recording],
    client: JobClient,
    speech: Fields,
    rendering: Fields,
    display: ProgressDisplay,
    *,
    max_parallel: int,
    forgets: bool,
) -> int:
    """Write the transcripts of the recordings; returns the number of failures. Raises Failure if the server has no jobs.

    `speech`: the fields of the jobs. `rendering`: those of the results, so that another format needs no other job. `forgets`:
    a job is deleted once its transcript is written.
    """
    if not recordings:
        return 0
    with display.row("jobs") as row:
        good, bad = _by_digest(client.listed(row))
    jobs: dict[int, Job] = {}

    def begin(index: int) -> Job:
        """The job of a recording, a new one if need be."""
        recording = recordings[index]
        with display.row(recording.name) as row:
            digest = _digest(recording.source, speech)
            if digest in good:
                return good[digest]
            # After a failure, the key of that job would only bring it back.
            key = f"{digest}.{bad[digest]['id']}" if digest in bad else digest
            return client.submit(recording.source, {**speech, "metadata": json.dumps({DIGEST: digest})}, key, row)

    def fetch(numbered: tuple[int, Job | Exception]) -> str:
        """The transcript of a recording, once its job has ended."""
        index, job = numbered
        if isinstance(job, Exception):
            raise job
        with display.row(recordings[index].name) as row:
            job = jobs[index] = client.follow(job, row)
            if job["state"] != "completed":
                raise Failure(job["error"]["message"] if job["state"] == "failed" else "the job was cancelled")
            return client.result(job["id"], rendering, row)

    def forget_job(index: int) -> None:
        forget(jobs[index], recordings[index].name, client, display)

    indices = range(len(recordings))
    begun = in_parallel(zip(indices, indices, strict=True), begin, max_parallel)
    transcripts = in_parallel(((index, (index, job)) for index, job in begun), fetch, MAX_FOLLOWED)
    return write_transcripts(recordings, transcripts, display, forget_job if forgets else None)


def _by_digest(jobs: Sequence[Job]) -> tuple[dict[str, Job], dict[str, Job]]:
    """The newest jobs that have a transcript or may get one, and the newest others. The jobs come newest first."""
    good: dict[str, Job] = {}
    bad: dict[str, Job] = {}
    for job in jobs:
        if digest := (job["metadata"] or {}).get(DIGEST):
            (bad if job["state"] in ("failed", "cancelled") else good).setdefault(str(digest), job)
    return good, bad


def _digest(source: Source, speech: Fields) -> str:
    """Of a recording and its options. Raises Failure."""
    try:
        with open(source, "rb", closefd=isinstance(source, Path)) as file:
            file.seek(0)
            content = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise Failure(f"cannot be read: {error.strerror}") from error
    return hashlib.sha256(json.dumps([content, file_name(source), speech], sort_keys=True).encode()).hexdigest()
