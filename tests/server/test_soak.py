"""The soak in short: half a minute of good clients and of clients that misbehave; and what it calls growth."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from testing.paths import ROOT
from testing.soak.__main__ import ATTEMPTS, LIMITS
from testing.soak.sampling import Held, Sample, trends

TOLERANCE = 15
"""Waves of a few seconds look like trends in so short a time, and the server still takes memory."""


@pytest.mark.serve
@pytest.mark.long
def test_half_a_minute(tmp_path: Path) -> None:
    path = tmp_path / "soak.json"
    options = ["--minutes", "0.5", "--tolerance", str(TOLERANCE), "--json", str(path)]
    done = subprocess.run([sys.executable, "-m", "testing.soak", *options], cwd=ROOT, capture_output=True, text=True)
    print(done.stdout)
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr[-5000:]}"
    results = json.loads(path.read_text())
    assert set(results["done"]) == {*ATTEMPTS, "a short file", "a long file", "a live stream"}
    assert results["unexpected"] == {}
    assert {"ingress", "decoder", "model digits", "model simulated", "status", "ProxyActor"} <= set(
        results["samples"][-1]["held"]
    )


def grown(figure: str, per_sample: Callable[[int], float]) -> set[tuple[str, str]]:
    """What grows if a figure of the ingress is that."""
    samples = [Sample(2.0 * n, {"ingress": Held(**{figure: per_sample(n)}), "status": Held()}, 0) for n in range(100)]
    return {(trend.name, trend.figure) for trend in trends(samples, LIMITS) if trend.grows}


def test_a_leak_is_growth() -> None:
    assert grown("descriptors", lambda n: 40 + n // 8) == {("ingress", "descriptors"), ("all", "descriptors")}


def test_a_leak_below_waves_is_growth() -> None:
    """Of 15 MiB, where requests in progress take up to 60."""
    assert grown("own_mib", lambda n: 400 + 0.3 * n + 20 * (n % 4)) == {("ingress", "own_mib"), ("all", "own_mib")}


def test_a_leak_in_steps_is_growth() -> None:
    """As an allocator takes memory."""
    assert grown("own_mib", lambda n: 400 + 12 * (n // 20)) == {("ingress", "own_mib"), ("all", "own_mib")}


def test_one_step_at_the_end_is_not() -> None:
    assert grown("threads", lambda n: 35 if n < 90 else 38) == set()


def test_what_random_requests_hold_is_not() -> None:
    """Open files of about twenty uploads in progress: the lowest numbers of five parts differ by more than the limit."""
    uploads = np.random.default_rng(0).poisson(20, (200, 100))
    found = [grown("files", one.__getitem__) for one in uploads]
    assert sum(map(bool, found)) < 0.1 * len(found)


def test_a_warm_up_and_waves_are_not() -> None:
    assert grown("descriptors", lambda n: min(n, 40) + 10 * (n % 4)) == set()


def test_a_busy_end_is_not() -> None:
    assert grown("own_mib", lambda n: 400 + (n % 3) * (20 if n < 90 else 40)) == set()


@pytest.mark.parametrize("every", range(4, 11))
def test_free_memory_that_is_returned_once_in_a_while_is_not(every: int) -> None:
    """120 MiB of it."""
    assert grown("own_mib", lambda n: 600 + 120 * (n % every) / every) == set()
