"""Damaged files by the hundred, to the running server."""

import asyncio
import itertools
import time

import numpy as np
import pytest

from serve_app.window import SAMPLE_RATE
from testing import fuzz_media, media
from testing.server import Server

pytestmark = [pytest.mark.serve, pytest.mark.slow]

FILES = 300

MAX_GROWTH_MB_PER_FILE = 0.05
"""Memory of any one process."""


@pytest.fixture(scope="module")
def seeds() -> dict[str, bytes]:
    return fuzz_media.seed_files()


def test_every_format_is_understood(server: Server, seeds: dict[str, bytes]) -> None:
    answers = {name: server.transcribe(data) for name, data in seeds.items()}
    assert {name: answer.json().get("text") for name, answer in answers.items()} == dict.fromkeys(seeds, fuzz_media.SPOKEN)


def at_rest(server: Server) -> fuzz_media.Load:
    """The load once the files are closed: that of an upload is just after its answer."""
    until_s = time.monotonic() + 60
    while (load := fuzz_media.Load.of(server.process_id)).temporary_files and time.monotonic() < until_s:
        time.sleep(0.1)
    return load


@pytest.mark.parametrize("files", [FILES, pytest.param(10_000, marks=pytest.mark.long)])
def test_damaged_files(server: Server, seeds: dict[str, bytes], files: int) -> None:
    """No failure, no hang, no wrong answer to the good files between them, and nothing left behind."""
    # What the model takes for its longest window it keeps.
    assert server.transcribe(media.wav(np.random.default_rng(0).normal(0, 0.1, 100 * SAMPLE_RATE))).status_code == 200
    asyncio.run(fuzz_media.send(server.url, fuzz_media.damaged_files(seeds, 100, 1)))
    files_before = set(server.temporary.iterdir())
    loads = [at_rest(server)]
    for seed in (2, 3):
        report = asyncio.run(fuzz_media.send(server.url, fuzz_media.damaged_files(seeds, files // 2, seed)))
        loads.append(at_rest(server))
        assert report.failures == []
        assert report.wrong_texts == []
        assert report.statuses.total() == files // 2
        assert set(report.statuses) == {200, 400}
        assert min(report.statuses.values()) > files // 8
    assert loads[0].processes["decoder"] >= 1
    assert {tuple(sorted(load.processes.items())) for load in loads} == {tuple(sorted(loads[0].processes.items()))}
    first, second = (after.growth_mb(before) for before, after in itertools.pairwise(loads))
    print(f"growth in MB: {first}, then {second}")
    # What leaks grows in both halves; an allocator may take a large step once.
    assert max(min(first[process], second[process]) for process in first) < MAX_GROWTH_MB_PER_FILE * files / 2
    assert [load.temporary_files for load in loads] == [()] * len(loads)
    assert set(server.temporary.iterdir()) == files_before
