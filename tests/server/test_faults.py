"""What breaks while a long file is being transcribed: its replicas die, its client goes away. Nobody else may notice.

The simulated engine's words depend on nothing but the audio, so that a window which is lost, doubled or misplaced shows.
"""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import psutil
import pytest

from serve_app.cluster.calls import MAX_BY_VALUE_BYTES
from serve_app.window import SAMPLE_RATE, Samples
from testing import media
from testing.digit_strings import DigitString, with_pauses
from testing.paths import ROOT
from testing.server import Server, open_files, serve_run
from testing.streams import REALTIME, connect, until_closed

pytestmark = [pytest.mark.serve]

NOISE_S = 480
WINDOW_S, OVERLAP_S = 8.0, 1.5
BATCH_ITEMS = 2
STEP_S = {"pair": 0.5, "single": 0.25}

NOISE_WINDOWS = int(NOISE_S / WINDOW_S)
"""Windows of the noise, at least."""

REPORT_AGE_S = 1.0
"""What /ready says of a replica is at most this old."""

READY_S = 20.0
"""/ready answers much sooner, however long the status registry is away."""

WAIT_S = 240.0


def simulated(name: str, replicas: int) -> dict[str, Any]:
    """Settings of a model with so many replicas that takes `STEP_S` for each batch."""
    costs = {"step_s": STEP_S[name], "seconds_per_audio_s": 0.0}
    counts = {"min_replicas": replicas, "max_replicas": replicas, "cpus_per_replica": 0.1}
    return {"name": name, "source": "simulated", "simulation": costs, **counts}


def digits() -> dict[str, Any]:
    return {"name": "digits", "source": "bundled", "min_replicas": 1}


DRAINED_S = 600
"""Length of the file that is in progress when the server is told to stop, seconds."""

LONG_WINDOW_S = 200.0
"""Its audio does not fit into a message between an ingress and a replica."""

ARGS = {
    "models": [
        digits(),
        simulated("pair", 2),
        simulated("single", 1),
        simulated("single", 1) | {"name": "long", "windows": {"window_s": LONG_WINDOW_S}},
    ],
    "windows": {"window_s": WINDOW_S, "overlap_s": OVERLAP_S},
    "batching": {"max_batch_items": BATCH_ITEMS},
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    # Serve finds a dead proxy by three failed checks.
    env = {"RAY_SERVE_PROXY_HEALTH_CHECK_PERIOD_S": "1"}
    with serve_run(ROOT / "configs" / "demo.yaml", tmp_path_factory.mktemp("faults"), args=ARGS, env=env) as server:
        for model in ("digits", "pair", "single"):
            server.wait_for_state(model, "ready")
        wait_until(lambda: len(server.model("pair")["replicas"]) == 2)
        yield server


@pytest.fixture(scope="module")
def noise() -> bytes:
    """NOISE_S seconds as a WAV file, in which the simulated engine recognises two words a second."""
    return media.wav(np.random.default_rng(3).integers(-8000, 8000, NOISE_S * SAMPLE_RATE, dtype=np.int16))


@pytest.fixture(scope="module")
def undisturbed(server: Server, noise: bytes) -> dict[str, Any]:
    """The answer to `noise` when nothing breaks."""
    answer = transcript(server, noise, "pair")
    assert len(answer["words"]) > NOISE_S
    return answer


def test_windows_too_long_for_a_message(server: Server, noise: bytes) -> None:
    assert 2 * LONG_WINDOW_S * SAMPLE_RATE > MAX_BY_VALUE_BYTES
    server.wait_for_state("long", "ready")
    taken = windows_taken(server, "long")
    assert len(transcript(server, noise, "long")["words"]) > NOISE_S
    wait_until(lambda: windows_taken(server, "long") > taken)
    assert windows_taken(server, "long") - taken < 3 * NOISE_S / LONG_WINDOW_S


class TestReplicasKilled:
    """SIGKILL of model replicas that have windows of the file."""

    def test_three_times(self, server: Server, noise: bytes, undisturbed: dict[str, Any]) -> None:
        with ThreadPoolExecutor(1) as client:
            answer = client.submit(transcript, server, noise, "pair")
            for _ in range(3):
                kill_at_work(server, "pair", answer)
            assert answer.result() == undisturbed

    def test_the_only_one(self, server: Server, noise: bytes, undisturbed: dict[str, Any]) -> None:
        with ThreadPoolExecutor(1) as client:
            answer = client.submit(transcript, server, noise, "single")
            kill_at_work(server, "single", answer)
            assert answer.result() == undisturbed

    def test_a_real_one(self, server: Server, strings: list[DigitString]) -> None:
        recording = media.wav(with_pauses(strings * 8))
        expected = spoken(transcript(server, recording, "digits"))
        # Windows of this transcription must not count as windows of the next one.
        time.sleep(2 * REPORT_AGE_S)
        with ThreadPoolExecutor(1) as client:
            answer = client.submit(transcript, server, recording, "digits")
            kill_at_work(server, "digits", answer, after_windows=1)
            assert spoken(answer.result()) == expected


class TestClientGone:
    """A client that closes its connection before it has its answer."""

    @pytest.mark.parametrize("share_sent", [1.0, 0.5], ids=["while it waits", "in the middle of its upload"])
    def test_its_work_is_dropped(self, server: Server, noise: bytes, share_sent: float) -> None:
        ingress = server.processes("ingress")[0]
        files = open_files(ingress)
        log_before = len(server.log)  # in which replicas were killed
        content = raw_request(server, noise, "single")
        with socket.create_connection(("127.0.0.1", server.client.base_url.port or 80)) as connection:
            connection.sendall(content[: int(share_sent * len(content))])
            if share_sent == 1:
                wait_until(lambda: replica(server, "single")["queued"] > 0)
        decoded = windows_taken(server, "single")
        wait_until(
            lambda: open_files(ingress) <= files and replica(server, "single")["queued"] == 0,
            lambda: (open_files(ingress) - files, replica(server, "single")),
        )
        # A window that was in a batch when the client left may still be counted, in the next report.
        time.sleep(STEP_S["single"] + REPORT_AGE_S)
        left = windows_taken(server, "single")
        assert left - decoded < NOISE_WINDOWS // 2, "most of the file was transcribed for nobody"
        time.sleep(STEP_S["single"] + REPORT_AGE_S)
        assert windows_taken(server, "single") == left
        assert "never retrieved" not in server.log[log_before:]
        assert server.transcribe(media.wav(media.tone(3)), model="single").status_code == 200


class TestProcessesLost:
    """The processes between a client and the models. Serve replaces each of them."""

    def test_the_ingress(self, server: Server, noise: bytes) -> None:
        with ThreadPoolExecutor(1) as client:
            answer = client.submit(server.transcribe, noise, model="single")
            wait_until(lambda: replica(server, "single")["queued"] > 0)
            server.processes("ingress")[0].kill()
            assert (answer.result().status_code, answer.result().json()["error"]["code"]) == (503, "ingress_lost")
        wait_until_served(server)

    def test_the_proxy(self, server: Server, noise: bytes) -> None:
        """Its clients have lost their connections, so their work is dropped."""
        ingress = server.processes("ingress")[0]
        files = open_files(ingress)
        with ThreadPoolExecutor(1) as client:
            answer = client.submit(server.transcribe, noise, model="single")
            wait_until(lambda: replica(server, "single")["queued"] > 0)
            decoded = windows_taken(server, "single")
            server.processes("ProxyActor")[0].kill()
            assert isinstance(answer.exception(), httpx2.TransportError)
        wait_until(lambda: open_files(ingress) <= files)
        wait_until_served(server)
        wait_until(lambda: replica(server, "single")["queued"] == 0)
        assert windows_taken(server, "single") - decoded < NOISE_WINDOWS // 2, "most of the file was transcribed for nobody"

    def test_the_status_registry(self, server: Server) -> None:
        """The last known states are told until it is replaced."""
        (registry,) = server.processes("status")
        registry.kill()
        assert server.client.get("/ready", timeout=READY_S).status_code == 200
        wait_until(lambda: server.processes("status") not in ([], [registry]))
        wait_until(lambda: len(server.model("pair")["replicas"]) == 2)
        wait_until_served(server)


async def test_a_server_that_is_told_to_stop_finishes_what_is_in_progress(
    tmp_path: Path, speech: Samples, spoken: list[DigitString]
) -> None:
    """`python -m serve_app.run`, as in the container, on SIGTERM: a file, a live stream and a Realtime session."""
    noise = media.wav(np.random.default_rng(3).integers(-8000, 8000, DRAINED_S * SAMPLE_RATE, dtype=np.int16))
    args = ARGS | {"models": [digits(), simulated("single", 1)]}
    with (
        serve_run(ROOT / "configs" / "demo.yaml", tmp_path, args=args, drains=True) as server,
        ThreadPoolExecutor(1) as client,
    ):
        for model in ("digits", "single"):
            server.wait_for_state(model, "ready")
        answer = client.submit(transcript, server, noise, "single")
        wait_for_windows(server, "single", BATCH_ITEMS, answer)
        async with connect(server) as stream, connect(server, REALTIME) as realtime:
            await stream.send(json.dumps({"encoding": "pcm_s16le", "model": "digits"}))
            await stream.send(speech.tobytes())
            process = psutil.Process(server.process_id)
            process.terminate()
            wait_until(lambda: server.client.get("/ready").status_code == 503)
            refused = server.transcribe(media.wav(media.tone(1)), model="single")
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
            assert not answer.done()
            assert (await until_closed(stream, 1012))[-1]["text"] == " ".join(string.text for string in spoken)
            assert [event["type"] for event in await until_closed(realtime, 1012)] == ["session.created"]
        assert len(answer.result()["words"]) > DRAINED_S
        assert process.wait(WAIT_S) == 0
        assert "Traceback" not in server.log


def wait_until_served(server: Server) -> None:
    """Wait until a lost process has been replaced."""

    def is_served() -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return server.client.get("/ready").status_code == 200
        return False

    wait_until(is_served)


def transcript(server: Server, data: bytes, model: str) -> dict[str, Any]:
    """The whole answer: text, segments, words."""
    fields = {"model": model, "response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
    response = server.transcribe(data, **fields)
    assert response.status_code == 200, response.text
    answer: dict[str, Any] = response.json()
    return answer


def spoken(answer: dict[str, Any]) -> list[tuple[str, float, float]]:
    """Words with start and end, seconds. A true model's confidences depend, in their last digits, on its batches."""
    return [(word["word"], word["start"], word["end"]) for word in answer["words"]]


def kill_at_work(server: Server, model: str, answer: "Future[dict[str, Any]]", after_windows: int = 4 * BATCH_ITEMS) -> None:
    """Let the model go on by some windows, then kill its oldest replica and wait until windows are missed."""
    wait_for_windows(server, model, after_windows, answer)
    lost = times_lost(server, model)
    min(server.processes(f"model {model}"), key=psutil.Process.create_time).kill()
    wait_until(lambda: times_lost(server, model) > lost)
    assert not answer.done()


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


def times_lost(server: Server, model: str) -> int:
    """How often the ingress has missed a window with its replica."""
    return server.log.count(f"of {model} was lost")


def replica(server: Server, model: str) -> dict[str, Any]:
    """The report of the replica that started last."""
    last: dict[str, Any] = server.model(model)["replicas"][-1]
    return last


def raw_request(server: Server, data: bytes, model: str) -> bytes:
    """A transcription request as it goes over the wire."""
    request = server.client.build_request(
        "POST", "/v1/audio/transcriptions", files={"file": ("audio.wav", data)}, data={"model": model}
    )
    headers = "".join(f"{name}: {value}\r\n" for name, value in request.headers.items())
    return f"POST {request.url.path} HTTP/1.1\r\n{headers}\r\n".encode() + request.read()


def wait_until(holds: Callable[[], bool], seen: Callable[[], object] = lambda: "it did not happen") -> None:
    """`seen`: what to tell where it does not hold in time."""
    until = time.monotonic() + WAIT_S
    while not holds():
        assert time.monotonic() < until, seen()
        time.sleep(0.05)
