"""Processes that die while a long file is being transcribed, and clients that go away. Nobody else may notice."""

import contextlib
import socket
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import httpx2
import pytest

from serve_app.cluster.calls import MAX_BY_VALUE_BYTES
from serve_app.window import SAMPLE_RATE
from testing import media
from testing.server import Server, has_windows
from tests.server.faults.conftest import (
    BATCH_ITEMS,
    LONG_WINDOW_S,
    NOISE_S,
    STEP_S,
    WINDOW_S,
    transcript,
    wait_for_windows,
    wait_until,
    windows_taken,
)

pytestmark = [pytest.mark.serve]

NOISE_WINDOWS = int(NOISE_S / WINDOW_S)
"""Windows of the noise, at least."""

REPORT_AGE_S = 1.0
"""What /ready says of a replica is at most this old."""

READY_S = 20.0
"""/ready answers much sooner, however long the status registry is away."""


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


class TestClientGone:
    """A client that closes its connection before it has its answer."""

    @pytest.mark.parametrize("share_sent", [1.0, 0.5], ids=["while it waits", "in the middle of its upload"])
    def test_its_work_is_dropped(self, server: Server, noise: bytes, share_sent: float) -> None:
        ingress = server.processes("ingress")[0]
        log_before = len(server.log)  # in which replicas were killed
        content = raw_request(server, noise, "single")
        with socket.create_connection(("127.0.0.1", server.client.base_url.port or 80)) as connection:
            connection.sendall(content[: int(share_sent * len(content))])
            if share_sent == 1:
                wait_until(lambda: replica(server, "single")["queued"] > 0)
        decoded = windows_taken(server, "single")
        wait_until(
            lambda: not server.uploads(ingress) and replica(server, "single")["queued"] == 0,
            lambda: (server.uploads(ingress), replica(server, "single")),
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
        with ThreadPoolExecutor(1) as client:
            answer = client.submit(server.transcribe, noise, model="single")
            wait_until(lambda: replica(server, "single")["queued"] > 0)
            decoded = windows_taken(server, "single")
            server.processes("ProxyActor")[0].kill()
            assert isinstance(answer.exception(), httpx2.TransportError)
        wait_until(lambda: not server.uploads(ingress))
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


def wait_until_served(server: Server) -> None:
    """Wait until a lost process has been replaced."""

    def is_served() -> bool:
        with contextlib.suppress(httpx2.TransportError):
            return server.client.get("/ready").status_code == 200
        return False

    wait_until(is_served)


def kill_at_work(server: Server, model: str, answer: "Future[dict[str, Any]]") -> None:
    """Let the model go on by some windows, then kill a replica that has some, and wait until windows are missed."""
    wait_for_windows(server, model, 4 * BATCH_ITEMS, answer)
    lost = times_lost(server, model)
    # Another one may still be loading.
    next(process for process in server.processes(f"model {model}") if has_windows(process)).kill()
    wait_until(lambda: times_lost(server, model) > lost)
    assert not answer.done()


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
