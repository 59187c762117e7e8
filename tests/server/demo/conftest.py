"""One running server for every test of this folder: configs/demo.yaml, the bundled model loaded at the start.

Its log is JSON, and it traces requests whose clients ask for it.
"""

import contextlib
import signal
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import httpx2
import psutil
import pytest
import websockets.sync.client

from serve_app.api.websocket import PATH
from testing import media
from testing.paths import ROOT
from testing.reverse_proxy import REMOTE_ADDRESS
from testing.server import STOP_S, Server, serve_run
from testing.trace_collector import TraceCollector, trace_collector

IDLE_STREAMS = 200
"""Streams that test_live.py opens at once without sending anything."""

ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""Environment with which glibc returns freed memory to the system at once, so that tests measure what a process holds. Otherwise
it keeps up to some hundred MB, by chance."""

METRICS = {"RAY_metrics_report_interval_ms": "1000"}
"""Has the processes report their metrics every second."""

TRACES = {"OTEL_BSP_SCHEDULE_DELAY": "200"}
"""Has the processes send their spans every 200 ms."""

LOG = {"RAY_DISABLE_WORKER_LOG_PREFIX": "1"}
"""Has Ray pass on the lines of the log as they are."""


@pytest.fixture(scope="package")
def collector() -> Iterator[TraceCollector]:
    with trace_collector() as collector:
        yield collector


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory, collector: TraceCollector) -> Iterator[Server]:
    args = {
        "live": {"config_s": 5, "max_waiting_per_address": IDLE_STREAMS + 20},
        "log_format": "json",
        "ingress": {"trusted_proxies": [REMOTE_ADDRESS]},
        "diarizers": [{"name": "speakers", "source": "simulated", "cpus_per_replica": 0.1}],
        "tracing": {"endpoint": collector.url, "headers": {"x-key": "of-the-collector"}, "sample_ratio": 0},
    }
    env = ALLOCATOR | METRICS | TRACES | LOG
    # A child process inherits an ignored SIGINT, as a shell gives it to what runs in the background: a handler is not inherited.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    with serve_run(ROOT / "configs" / "demo.yaml", tmp_path_factory.mktemp("demo"), args=args, env=env) as server:
        server.wait_for_state("digits", "ready")
        yield server
        interrupt(server)


def interrupt(server: Server) -> None:
    """Ctrl-C, while a file and a stream are in progress. Asserts that it leaves no traceback."""
    url, log_before = server.url.replace("http", "ws") + PATH, len(server.log)
    with (
        ThreadPoolExecutor(1) as client,
        contextlib.suppress(websockets.ConnectionClosed),
        websockets.sync.client.connect(url) as ws,
    ):
        ws.send('{"encoding": "pcm_s16le"}')
        ws.send(media.pcm(media.tone(2), "pcm_s16le"))
        answer = client.submit(server.transcribe, media.wav(media.tone(600)))
        process = psutil.Process(server.process_id)
        process.send_signal(signal.SIGINT)
        process.wait(STOP_S)
        assert answer.exception() is None or isinstance(answer.exception(), httpx2.TransportError)
    assert "Traceback" not in server.log[log_before:]
