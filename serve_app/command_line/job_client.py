"""HTTP client of the server's jobs."""

import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from itertools import islice
from typing import Any, Protocol, TypedDict, cast
from urllib.parse import quote

import httpx2

from serve_app.command_line.client import (
    CONNECT_S,
    LOST_WAIT_S,
    Connection,
    Failure,
    Refused,
    Upload,
    Watcher,
    as_text,
    file_name,
    one_line,
    refusal,
)
from serve_app.command_line.options import Fields
from serve_app.command_line.recordings import Source

PAGE = 100
"""Jobs in an answer of the server at most."""

MAX_FOLLOWED = 16
"""Jobs to follow at once. The server has a limit for each address."""

EVENTS_SILENCE_S = 60.0
"""Read timeout of events, seconds. The server sends something every 15 s."""

ACTIVE = ("queued", "running")
"""States of jobs that have not ended."""

STATES = (*ACTIVE, "completed", "failed", "cancelled")


class Job(TypedDict):
    """What is used of a job, as the server describes it."""

    id: str
    state: str
    filename: str
    response_format: str | None
    metadata: dict[str, Any] | None
    done_s: float
    audio_s: float | None
    created_at: float
    error: Any


class JobWatcher(Watcher, Protocol):
    """Receives the progress of one job."""

    def queued(self) -> None: ...


class JobClient(Connection):
    """Thread-safe. All methods raise Failure."""

    def submit(self, source: Source, fields: Mapping[str, str | list[str]], key: str, watcher: Watcher) -> Job:
        """Send a recording. With the same `key` and the same request, it is the same job."""

        def request() -> Job:
            with Upload(source, watcher.sent) as file:
                form: dict[str, Any] = {"data": fields, "files": {"file": (file_name(source), file)}}
                return cast(Job, self._json("POST", "", headers={"Idempotency-Key": key}, **form))

        return self.attempt(request, watcher, is_repeatable=True)

    def check(self, watcher: Watcher) -> None:
        """Raise Failure where the server has no jobs, or not for this key."""
        self._page({"limit": 1}, watcher)

    def listed(self, watcher: Watcher, *, state: str | None = None, limit: int | None = None) -> list[Job]:
        """The newest jobs, the newest first."""
        return list(islice(self._pages(watcher, state, limit), limit))

    def get(self, job_id: str, watcher: Watcher) -> Job:
        return cast(Job, self.attempt(lambda: self._json("GET", _path(job_id)), watcher, is_repeatable=True))

    def follow(self, job: Job, watcher: JobWatcher) -> Job:
        """The job once it has ended. A broken connection is made again, and goes on where it was."""
        last_id = ""

        def read() -> None:
            """Until the job has ended or the connection is lost. Raises httpx2.HTTPError if nothing came at all."""
            nonlocal job, last_id
            has_news = False
            try:
                with self._http.sse(
                    self._jobs_url(f"{_path(job['id'])}/events"),
                    headers={"Last-Event-ID": last_id} if last_id else {},
                    timeout=httpx2.Timeout(EVENTS_SILENCE_S, connect=CONNECT_S, pool=None),
                ) as events:
                    self._check(events.response)
                    for event in events:
                        has_news, last_id = True, event.id
                        if event.event in ("state", "progress"):
                            job = cast(Job, event.json())
                            _show(job, watcher)
            except httpx2.HTTPError:
                if not has_news:
                    raise

        _show(job, watcher)
        while True:
            if job["state"] not in ACTIVE:
                return job
            self.attempt(read, watcher, is_repeatable=True)
            if job["state"] in ACTIVE:
                watcher.refused("the connection was lost", LOST_WAIT_S)
                time.sleep(LOST_WAIT_S)

    def result(self, job_id: str, fields: Fields, watcher: Watcher) -> str:
        """The transcript, rendered as `fields` say; those that are missing are as they were when the job was made."""

        def request() -> str:
            response = self._http.get(self._jobs_url(f"{_path(job_id)}/result"), params=fields)
            self._check(response)
            is_json = response.headers["Content-Type"].startswith("application/json")
            return as_text(response.json() if is_json else response.content.decode())

        return self.attempt(request, watcher, is_repeatable=True)

    def delete(self, job_id: str, watcher: Watcher) -> None:
        """Cancel a job that has not ended, or forget one that has."""
        self.attempt(lambda: self._check(self._http.delete(self._jobs_url(_path(job_id)))), watcher)

    def _pages(self, watcher: Watcher, state: str | None, limit: int | None) -> Iterator[Job]:
        query: dict[str, Any] = {"limit": min(limit or PAGE, PAGE)} | ({"state": state} if state else {})
        while True:
            page = self._page(query, watcher)
            yield from page["data"]
            if not page["has_more"]:
                return
            query["before"] = page["next"]

    def _page(self, query: Mapping[str, Any], watcher: Watcher) -> Any:
        return self.attempt(lambda: self._json("GET", "", params=query), watcher, is_repeatable=True)

    def _json(self, method: str, path: str, **request: Any) -> Any:
        response = self._http.request(method, self._jobs_url(path), **request)
        self._check(response)
        return response.json()

    def _jobs_url(self, path: str) -> str:
        return f"{self._url}/v1/jobs{path}"

    def _check(self, response: httpx2.Response) -> None:
        if response.is_success:
            return
        failure = refusal(response)
        # A job or a model that is not found has its own code.
        if isinstance(failure, Refused) and failure.status == HTTPStatus.NOT_FOUND and not failure.code.endswith("_not_found"):
            raise Failure(f"{self.address} has no jobs: its settings name no folder for them (`jobs.directory`)")
        raise failure


def title(job: Job) -> str:
    """What a job is called in progress and messages: its id, and its file if that has a name."""
    return one_line(f"{job['id']} {job['filename']}")


def end_of(job: Job) -> str:
    """How a job has ended, with the reason of a failure."""
    return f"failed: {one_line(job['error']['message'])}" if job["state"] == "failed" else one_line(job["state"])


def _path(job_id: str) -> str:
    return f"/{quote(job_id, safe='')}"


def _show(job: Job, watcher: JobWatcher) -> None:
    if job["state"] == "queued":
        watcher.queued()
    else:
        watcher.transcribed(job["done_s"], job["audio_s"])
