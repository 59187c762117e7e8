"""Jobs outlive everything: in the middle of three of them all processes are killed; in the long form, which `make soak` runs,
controller, replica and ingress before."""

import json
import re
import secrets
import sqlite3
import time
from base64 import b64encode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest
from standardwebhooks import Webhook

from serve_app.jobs.stores import DATABASE_NAME
from serve_app.jobs.transcription import SAVE_S
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE
from testing import media
from testing.checked_load import Words, words_of
from testing.paths import ROOT
from testing.server import Server, serve_run

pytestmark = [pytest.mark.serve]

JOBS = 3
NAME = "simulated"
SPEED = 150.0
"""Of the replica, seconds of audio per second."""

WINDOW_S, OVERLAP_S, MAX_WINDOWS = 8.0, 1.5, 8
WAIT_S = 150.0
FRAME_S = FRAME_SAMPLES / SAMPLE_RATE
SECRET = f"whsec_{b64encode(secrets.token_bytes(32)).decode()}"
METRICS = {"RAY_metrics_report_interval_ms": "1000"}


class Receiver:
    """Takes webhook messages, and checks their signatures."""

    def __init__(self) -> None:
        self.messages: list[tuple[str, dict[str, Any]]] = []
        messages = self.messages

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                Webhook(SECRET).verify(body, dict(self.headers.items()))
                messages.append((self.headers["webhook-id"], json.loads(body)))
                self.send_response(204)
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/hook"

    @contextmanager
    def listening(self) -> Iterator["Receiver"]:
        thread = Thread(target=self._server.serve_forever)
        thread.start()
        try:
            yield self
        finally:
            self._server.shutdown()
            thread.join()
            self._server.server_close()


@contextmanager
def running(folder: Path, jobs: Path, *, drains: bool = False) -> Iterator[Server]:
    folder.mkdir()
    args = {
        "models": [
            {
                **{"name": NAME, "source": "simulated", "min_replicas": 1, "cpus_per_replica": 0},
                "simulation": {"step_s": 0.05, "seconds_per_audio_s": 1 / SPEED},
            }
        ],
        "windows": {"window_s": WINDOW_S, "overlap_s": OVERLAP_S},
        "batching": {"max_batch_items": 2},
        "limits": {"max_windows_in_flight": MAX_WINDOWS},
        "ingress": {"replicas": 1, "cpus_per_replica": 0},
        "jobs": {"directory": str(jobs), "webhook_secrets": [SECRET], "webhook_hosts": ["127.0.0.1"]},
    }
    with serve_run(ROOT / "configs" / "demo.yaml", folder, args=args, env=METRICS, drains=drains) as server:
        server.wait_for_state(NAME, "ready")
        yield server


def submit(server: Server, data: bytes, **fields: Any) -> str:
    answer = server.client.post("/v1/jobs", files={"file": ("a.wav", data)}, data=fields)
    assert answer.status_code == 202, answer.text
    return str(answer.json()["id"])


def states(server: Server, ids: list[str]) -> list[dict[str, Any]] | None:
    """None while the server does not answer."""
    try:
        answers = [server.client.get(f"/v1/jobs/{job_id}", timeout=5) for job_id in ids]
    except httpx2.TransportError:
        return None
    if any(answer.status_code != 200 for answer in answers):
        return None
    return [answer.json() for answer in answers]


def wait_until(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until_s, "it did not happen"
        time.sleep(0.1)


def wait_for_progress(server: Server, ids: list[str], done_s: float) -> None:
    """`done_s`: of each, on average, seconds."""

    def is_there() -> bool:
        jobs = states(server, ids)
        return jobs is not None and sum(job["done_s"] for job in jobs) > done_s * len(ids)

    wait_until(is_there)


def received(server: Server, job_id: str) -> Words:
    url, formats = f"/v1/jobs/{job_id}/result", {"response_format": "verbose_json", "timestamp_granularities[]": "word"}
    words = server.client.get(url, params=formats).json()["words"]
    return Counter((word["word"], round(word["start"] / FRAME_S)) for word in words)


def decoded_s(server: Server) -> float:
    """Seconds of audio that replicas have decoded."""
    found = re.findall(r"^ray_parakeet_batch_audio_seconds_sum\S* (\S+)$", server.client.get("/metrics").text, re.MULTILINE)
    return sum(map(float, found))


def kill_all(server: Server) -> None:
    """A machine loses its power."""
    whole = psutil.Process(server.process_id)
    for process in [*whole.children(recursive=True), whole]:
        process.kill()


@pytest.mark.parametrize(
    ("kills", "job_s"),
    [
        pytest.param((), 150.0, id="all at once"),
        pytest.param(("ServeController", f"model {NAME}", "ingress"), 600.0, id="one by one", marks=pytest.mark.long),
    ],
)
def test_three_jobs_outlive_everything(tmp_path: Path, kills: tuple[str, ...], job_s: float) -> None:
    rng = np.random.default_rng(5)
    recordings = [rng.integers(-8000, 8000, round(job_s * SAMPLE_RATE), dtype=np.int16) for _ in range(JOBS)]
    with Receiver().listening() as receiver:
        with running(tmp_path / "first", tmp_path / "jobs") as server:
            fields = [{"webhook_url": receiver.url, "metadata": json.dumps({"number": n})} for n in range(JOBS)]
            ids = [submit(server, media.wav(samples), **each) for samples, each in zip(recordings, fields, strict=True)]
            for number, name in enumerate(kills):
                wait_for_progress(server, ids, (0.1 + 0.15 * number) * job_s)
                found = server.processes(name) or server.processes_with(f"ray::{name}")
                found[0].kill()
            wait_for_progress(server, ids, (0.6 if kills else 0.2) * job_s)
            before_s = decoded_s(server)
            kill_all(server)
        with running(tmp_path / "second", tmp_path / "jobs", drains=True) as server:
            wait_until(lambda: {job["state"] for job in states(server, ids) or []} == {"completed"})
            for samples, job_id in zip(recordings, ids, strict=True):
                assert received(server, job_id) == words_of(samples)
            wait_until(lambda: len({message for message, _ in receiver.messages}) == JOBS)
            wait_until(lambda: all(job["webhook_deliveries"][0]["state"] == "delivered" for job in states(server, ids) or []))
            # The metrics follow.
            time.sleep(3)
            after_s = decoded_s(server)
            last = submit(server, media.wav(recordings[0]))
            wait_for_progress(server, [last], 0.1 * job_s)
    # Told to stop, the server has handed its lease back, with what is done.
    with closing(sqlite3.connect(tmp_path / "jobs" / DATABASE_NAME)) as database:
        (row,) = database.execute("SELECT state, lease, part_count FROM jobs WHERE job_id = ?", (last,))
    assert row[:2] == ("queued", None)
    assert row[2] > 0
    contents = {message: body["data"] for message, body in receiver.messages}
    assert sorted(data["metadata"]["number"] for data in contents.values()) == list(range(JOBS))
    assert {data["id"] for data in contents.values()} == set(ids)
    windows = JOBS * job_s / (WINDOW_S - OVERLAP_S) + JOBS
    lost_s = (1 + len(kills)) * (MAX_WINDOWS * WINDOW_S + (SAVE_S + 2) * SPEED)
    assert before_s + after_s < windows * WINDOW_S + lost_s
