"""One running server for every test of this folder: models and diarizers whose processes the tests kill, nearly all simulated.

The simulated engine's words depend on nothing but the audio, so that a window which is lost, doubled or misplaced shows.
"""

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future
from typing import Any

import numpy as np
import pytest

from serve_app.window import SAMPLE_RATE
from testing import media
from testing.paths import ROOT
from testing.server import Server, serve_run

NOISE_S = 480
WINDOW_S, OVERLAP_S = 8.0, 1.5
BATCH_ITEMS = 2
STEP_S = {"pair": 0.5, "single": 0.25}

LONG_WINDOW_S = 200.0
"""The audio of such a window does not fit into a message between an ingress and a replica."""

DIARIZER_STEP_S = 0.15
WAIT_S = 240.0


def simulated(name: str, replicas: int) -> dict[str, Any]:
    """Settings of a model with so many replicas that takes `STEP_S` for each batch."""
    costs = {"step_s": STEP_S[name], "seconds_per_audio_s": 0.0}
    counts = {"min_replicas": replicas, "max_replicas": replicas, "cpus_per_replica": 0.1}
    return {"name": name, "source": "simulated", "simulation": costs, **counts}


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """`python -m serve_app.run`, as in the container."""
    folder = tmp_path_factory.mktemp("faults")
    args = {
        "models": [
            simulated("pair", 2),
            simulated("single", 1),
            simulated("single", 1) | {"name": "long", "windows": {"window_s": LONG_WINDOW_S}},
        ],
        "diarizers": [
            {"name": "speakers", "source": "simulated", "cpus_per_replica": 0.1, "simulation": {"step_s": DIARIZER_STEP_S}},
            {"name": "missing", "source": str(folder / "missing.nemo"), "cpus_per_replica": 0.1},
        ],
        "windows": {"window_s": WINDOW_S, "overlap_s": OVERLAP_S},
        "batching": {"max_batch_items": BATCH_ITEMS},
        "limits": {"model_wait_s": WAIT_S},
    }
    # Serve finds a dead proxy by three failed checks.
    env = {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1"}
    with serve_run(ROOT / "configs" / "demo.yaml", folder, args=args, env=env, drains=True) as server:
        for model in ("pair", "single"):
            server.wait_for_state(model, "ready")
        wait_until(lambda: len(server.model("pair")["replicas"]) == 2)
        yield server


@pytest.fixture(scope="package")
def noise() -> bytes:
    """NOISE_S seconds as a WAV file, in which the simulated engine recognises two words a second."""
    return noise_of(NOISE_S)


def noise_of(seconds: float) -> bytes:
    return media.wav(np.random.default_rng(3).integers(-8000, 8000, round(seconds * SAMPLE_RATE), dtype=np.int16))


def transcript(server: Server, data: bytes, model: str) -> dict[str, Any]:
    """The whole answer: text, segments, words."""
    fields = {"model": model, "response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
    response = server.transcribe(data, **fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def wait_for_windows(server: Server, model: str, count: int, answer: "Future[dict[str, Any]]") -> None:
    """Wait until replicas of the model have taken so many windows more."""
    taken, before = 0, windows_taken(server, model)

    def are_taken() -> bool:
        nonlocal taken, before
        assert not answer.done(), "the file was done before anything broke"
        # Less than before is a dead replica that has been forgotten.
        now = windows_taken(server, model)
        taken += max(0, now - before)
        before = now
        return taken >= count

    wait_until(are_taken)


def windows_taken(server: Server, model: str) -> int:
    return sum(replica["windows"] for replica in server.model(model)["replicas"])


def wait_until(holds: Callable[[], bool], seen: Callable[[], object] = lambda: "it did not happen") -> None:
    """`seen`: what to tell where it does not hold in time."""
    until = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until, seen()
        # To look is mostly a request, which takes of the server's processor time.
        time.sleep(0.2)
