"""Damaged files by the hundred, to the running server."""

import asyncio

import numpy as np
import pytest

from serve_app.window import SAMPLE_RATE
from testing import fuzz_media, media
from testing.server import Server

pytestmark = [pytest.mark.serve, pytest.mark.slow]

FILES = 500


@pytest.fixture(scope="module")
def seeds() -> dict[str, bytes]:
    return fuzz_media.seed_files()


def test_every_format_is_understood(server: Server, seeds: dict[str, bytes]) -> None:
    answers = {name: server.transcribe(data) for name, data in seeds.items()}
    assert {name: answer.json().get("text") for name, answer in answers.items()} == dict.fromkeys(seeds, fuzz_media.SPOKEN)


@pytest.mark.parametrize("files", [FILES, pytest.param(4 * FILES, marks=pytest.mark.long)])
def test_damaged_files(server: Server, seeds: dict[str, bytes], files: int) -> None:
    """No failure, no hang, no wrong answer to the good files between them, and nothing left behind."""
    # What the model takes for its longest window it keeps.
    assert server.transcribe(media.wav(np.random.default_rng(0).normal(0, 0.1, 100 * SAMPLE_RATE))).status_code == 200
    asyncio.run(fuzz_media.send(server.url, fuzz_media.damaged_files(seeds, 100, 1)))
    before, files_before = fuzz_media.Load.of(server.process_id), set(server.temporary.iterdir())
    report = asyncio.run(fuzz_media.send(server.url, fuzz_media.damaged_files(seeds, files, 2)))
    after = fuzz_media.Load.of(server.process_id)
    assert report.failures == []
    assert report.wrong_texts == []
    assert report.statuses.total() == files
    assert set(report.statuses) == {200, 400}
    assert min(report.statuses.values()) > files // 4
    assert len(before.held_mb) >= 4
    growth_mb = after.growth_mb(before)
    print(f"{report.statuses}, growth in MB: {growth_mb}")
    assert max(growth_mb.values()) < 100
    assert (before.temporary_files, after.temporary_files) == (0, 0)
    assert set(server.temporary.iterdir()) == files_before
