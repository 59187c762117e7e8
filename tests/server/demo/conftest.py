"""One running server for every test of this folder: configs/demo.yaml, the bundled model loaded at the start."""

from collections.abc import Iterator

import pytest

from testing.paths import ROOT
from testing.server import Server, serve_run

IDLE_STREAMS = 200
"""Streams that test_live.py opens at once without sending anything."""

ALLOCATOR = {"MALLOC_ARENA_MAX": "1", "MALLOC_MMAP_THRESHOLD_": "65536"}
"""Environment with which glibc returns freed memory to the system at once, so that tests measure what a process holds. Otherwise
it keeps up to some hundred MB, by chance."""

METRICS = {"RAY_metrics_report_interval_ms": "1000"}
"""Has the processes report their metrics every second."""


@pytest.fixture(scope="package")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    args = {"live": {"config_s": 5, "max_waiting_per_address": IDLE_STREAMS + 20}}
    with serve_run(ROOT / "configs" / "demo.yaml", tmp_path_factory.mktemp("demo"), args=args, env=ALLOCATOR | METRICS) as server:
        server.wait_for_state("digits", "ready")
        yield server
