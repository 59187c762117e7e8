"""A changed configuration under load: ten long files and ten live streams lose nothing. What is removed answers everybody."""

import json
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from testing import media
from testing.checked_load import WAIT_S, CheckedLoad
from testing.paths import ROOT
from testing.server import Server, serve_run

pytestmark = [pytest.mark.serve]

CLIENTS = 10
FILE_S = 160.0
FEW, SHORT_S = 4, 300.0
"""Clients and length of their files where something is removed."""
KEPT, REMOVED, NEW = "kept", "removed", "new"


def model(name: str, step_s: float) -> dict[str, Any]:
    costs = {"step_s": step_s, "seconds_per_audio_s": 0.0}
    return {"name": name, "source": "simulated", "simulation": costs, "min_replicas": 1, "cpus_per_replica": 0}


def args(*models: dict[str, Any]) -> dict[str, Any]:
    return {
        "models": list(models),
        "windows": {"window_s": 8.0, "overlap_s": 1.5},
        "batching": {"max_batch_items": 4},
        "live": {"step_s": 2.0, "left_s": 4.0, "right_s": 1.0},
        # Few, so that the old replica can finish those that it has within its time.
        "limits": {"max_windows_in_flight": 20},
        "ingress": {"replicas": 1, "cpus_per_replica": 0},
        "log_format": "json",
    }


OLD, CHANGED = args(model(KEPT, 1.0), model(REMOVED, 1.0)), args(model(KEPT, 0.02), model(NEW, 1.0))
"""Before the change, a file would take minutes more; after it, it is done at once."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with serve_run(ROOT / "configs" / "demo.yaml", tmp_path_factory.mktemp("upgrades"), args=OLD) as server:
        for name in (KEPT, REMOVED):
            server.wait_for_state(name, "ready")
        yield server


def test_lines_of_log_files_are_objects_with_the_id_of_their_request(server: Server) -> None:
    headers = {"X-Request-Id": "of-this-test"}
    answer = server.client.post("/v1/audio/transcriptions", files={"file": b"no audio"}, headers=headers)
    assert answer.headers["X-Request-Id"] == "of-this-test"
    (ingress,) = server.processes("ingress")
    (path,) = [Path(file.path) for file in ingress.open_files() if Path(file.path).name.startswith("replica_")]
    wait_until(lambda: "of-this-test" in path.read_text())  # The line follows the answer.
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    (line,) = [line for line in lines if line.get("request_id") == "of-this-test"]
    assert line["message"].startswith("POST /v1/audio/transcriptions 400")
    assert (line["levelname"], line["deployment"]) == ("INFO", "parakeet_ingress")


def test_a_changed_configuration_loses_nothing_but_what_it_removes(server: Server) -> None:
    with (
        CheckedLoad([server.url], KEPT, CLIENTS, FILE_S, CLIENTS, retries=False) as kept,
        CheckedLoad([server.url], REMOVED, FEW, SHORT_S, FEW, retries=False) as removed,
    ):
        for load in (kept, removed):
            load.wait_until_begun()
        old = ids(server, f"model {KEPT}")
        job = submit(server)
        server.deploy(CHANGED)
        removed.wait_until_done()
        kept.wait_until(lambda: bool(ids(server, f"model {KEPT}")) and not ids(server, f"model {KEPT}") & old)
        kept.wait_until(lambda: all(file.is_done for file in kept.files))
        heard_s = max(stream.position_s for stream in kept.streams)
        kept.wait_until(lambda: all(stream.position_s > heard_s or stream.is_done for stream in kept.streams))
    assert [client.saw for client in kept.clients] == [[]] * len(kept.clients)
    assert sum(client.expected.total() for client in kept.files) > CLIENTS * FILE_S
    assert [(client.kind, client.lost, client.doubled) for client in kept.clients if client.lost or client.doubled] == []
    assert Counter(file.saw[0] for file in removed.files) == {"error event model_unavailable": FEW}
    assert Counter(stream.saw[0] for stream in removed.streams) == {"error model_unavailable, close 1013": FEW}
    assert [ended(server, each)["state"] for each in (job, submit(server))] == ["completed"] * 2


def test_an_application_that_is_removed_answers_everybody(server: Server) -> None:
    server.wait_for_state(NEW, "ready")
    with CheckedLoad([server.url], NEW, FEW, SHORT_S, FEW, retries=False) as load:
        load.wait_until_begun()
        server.run_in_cluster("from ray import serve; serve.delete('parakeet')")
        load.wait_until_done()
    assert Counter(file.saw[0] for file in load.files) == {"error event model_unavailable": FEW}
    assert {stream.saw[0] for stream in load.streams} <= {"error model_unavailable, close 1013", "close 1012"}
    answer = server.client.get("/health")
    assert (answer.status_code, answer.json()["error"]["code"]) == (503, "unserved")


def submit(server: Server) -> str:
    """The id of a job of two minutes."""
    noise = np.random.default_rng(3).integers(-8000, 8000, 120 * 16_000, dtype=np.int16)
    answer = server.client.post("/v1/jobs", files={"file": media.wav(noise)}, data={"model": KEPT})
    return str(answer.json()["id"])


def ended(server: Server, job_id: str) -> dict[str, Any]:
    return dict(server.client.get(f"/v1/jobs/{job_id}", params={"wait": WAIT_S}).json())


def ids(server: Server, name: str) -> set[int]:
    return {process.pid for process in server.processes(name)}


def wait_until(holds: Callable[[], bool]) -> None:
    until_s = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until_s, "it did not happen"
        time.sleep(0.1)
