"""HTTP client of jobs: sends a recording as a job, follows it through lost connections, and fetches its transcript."""

import hashlib
import json
import time
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any, Literal

import httpx2

from serve_app.command_line.client import (
    Busy,
    Failure,
    ServerClient,
    Upload,
    Watcher,
    as_text,
    file_name,
    one_line,
    refusal,
)
from serve_app.command_line.jobs import Source

DIGEST = "parakeet-serve"
"""Key in the `metadata` of jobs that `transcribe --as-jobs` makes: what was sent, so that it finds them again."""

RECONNECT_S = 2.0
"""Time until a lost connection is opened again, seconds."""

MAX_LOST = 300
"""Connections in a row that may be lost, ten minutes at least."""

PAGE = 100
_PIECE_BYTES = 1 << 20

State = Literal["queued", "running", "completed", "failed", "cancelled"]
ENDED: tuple[State, ...] = ("completed", "failed", "cancelled")

JobBody = dict[str, Any]
"""A job as the server describes it, see docs/jobs.md."""


class JobClient(ServerClient):
    """Thread-safe. `fields` are the form fields of every job besides the file."""

    def __init__(self, url: str, api_key: str | None, fields: Mapping[str, str | list[str]]) -> None:
        super().__init__(url, api_key)
        self._fields = dict(fields)

    def submit(self, source: Source, watcher: Watcher, key: str | None = None, **fields: str) -> JobBody:
        """Make a job; with a key, the same one however often it is called. Raises Failure."""
        headers = {} if key is None else {"Idempotency-Key": key}

        def send() -> JobBody:
            with Upload(source, watcher.sent) as file:
                files = {"file": (file_name(source), file)}
                job: JobBody = self._json("POST", "/v1/jobs", data=self._fields | fields, files=files, headers=headers)
                return job

        return self.persistently(send, watcher)

    def list(self, state: State | None = None, limit: int | None = None) -> Iterator[JobBody]:
        """The jobs of this key, newest first. Raises Failure."""
        before: int | None = None
        number = 0
        while True:
            parameters: dict[str, Any] = {"limit": PAGE if limit is None else min(PAGE, limit - number)}
            parameters |= {name: value for name, value in (("state", state), ("before", before)) if value is not None}
            page = self.call(lambda parameters=parameters: self._json("GET", "/v1/jobs", params=parameters))  # type: ignore[misc]
            yield from page["data"]
            number, before = number + len(page["data"]), page["next"]
            if before is None or number == limit:
                return

    def get(self, job_id: str) -> JobBody:
        """Raises Failure."""
        job: JobBody = self.call(lambda: self._json("GET", f"/v1/jobs/{job_id}"))
        return job

    def cancel(self, job_id: str) -> None:
        """Cancel a job, or forget one that has ended. Raises Failure."""
        self.call(lambda: self._response("DELETE", f"/v1/jobs/{job_id}"))

    def result(self, job_id: str, response_format: str | None = None, *, words: bool = False) -> str:
        """The transcript; without a format, in that which the job was made with. Raises Failure."""
        parameters: dict[str, Any] = {} if response_format is None else {"response_format": response_format}
        if words:
            parameters["timestamp_granularities[]"] = ["word", "segment"]
        response = self.call(lambda: self._response("GET", f"/v1/jobs/{job_id}/result", params=parameters))
        is_json = response.headers.get("content-type", "").startswith("application/json")
        return as_text(json.loads(response.content) if is_json else response.text)

    def watch(self, job_id: str, watcher: Watcher) -> JobBody:
        """The job once it has ended; lost connections are opened again. Raises Failure."""
        last_id, lost = "", 0
        while True:
            try:
                for event_id, name, body in self._events(job_id, last_id):
                    last_id, lost = event_id or last_id, 0
                    if name in ("state", "progress"):
                        watcher.transcribed(body["done_s"], body["audio_s"])
                    if name == "state" and body["state"] in ENDED:
                        return body
            except (Busy, httpx2.HTTPError) as error:
                lost += 1
                if lost == MAX_LOST:
                    raise Failure(f"the connection was lost {MAX_LOST} times: {one_line(error)}") from error
            # The server may have ended the events because it stops.
            time.sleep(RECONNECT_S)

    def transcribe(self, source: Source, watcher: Watcher) -> str:
        """The transcript in the `response_format` of the fields, of a job that was made earlier if there is one. Raises
        Failure."""
        digest = self.digest(source)
        job = next((job for job in self.list() if (job["metadata"] or {}).get(DIGEST) == digest), None)
        if job is None or job["state"] in ("failed", "cancelled"):
            key = None if job else digest
            job = self.submit(source, watcher, key, metadata=json.dumps({DIGEST: digest}))
        ended = self.watch(job["id"], watcher)
        if ended["state"] != "completed":
            raise Failure(reason(ended))
        return self.result(ended["id"])

    def digest(self, source: Source) -> str:
        """Of the file and the fields. Raises Failure."""
        hashed = hashlib.sha256(json.dumps(self._fields, sort_keys=True).encode())

        def read() -> None:
            with Upload(source, lambda *_: None) as file:
                while piece := file.read(_PIECE_BYTES):
                    hashed.update(piece)

        self.call(read)
        return hashed.hexdigest()

    def _events(self, job_id: str, last_id: str) -> Iterator[tuple[str, str, JobBody]]:
        headers = {"Last-Event-ID": last_id} if last_id else {}
        with self.http.sse(f"{self.url}/v1/jobs/{job_id}/events", headers=headers, max_event_size=None) as events:
            if events.response.status_code != HTTPStatus.OK:
                raise self._explained(refusal(events.response), events.response.status_code)
            for event in events:
                body: Any = event.json()
                yield event.id or "", event.event, body

    def _json(self, method: str, path: str, **options: Any) -> Any:
        return json.loads(self._response(method, path, **options).content)

    def _response(self, method: str, path: str, **options: Any) -> httpx2.Response:
        response = self.http.request(method, f"{self.url}{path}", **options)
        if response.status_code >= HTTPStatus.BAD_REQUEST:
            raise self._explained(refusal(response), response.status_code)
        return response

    @staticmethod
    def _explained(failure: Failure, status: int) -> Failure:
        if status == HTTPStatus.NOT_FOUND and "Unknown route" in str(failure):
            return Failure("this server has no jobs: its settings have no `jobs.directory`")
        return failure


def reason(job: JobBody) -> str:
    """Why a job has no transcript, in one line."""
    return one_line(job["error"]["message"]) if job["error"] else f"the job is {job['state']}"
