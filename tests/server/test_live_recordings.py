"""Ten minutes of live speech at its own pace, in several streams: as good as the same audio as files, and never taken back."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.live import delays, measure, recorded
from testing.accuracy import HELD_OUT_INDEXES
from testing.digit_strings import load_bank
from testing.paths import ROOT
from testing.server import Server, serve_run

pytestmark = [pytest.mark.serve, pytest.mark.speech, pytest.mark.long]

MINUTES = 10
STREAMS = 4
WORD_ERROR_MARGIN = 0.3


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with serve_run(ROOT / "configs" / "demo.yaml", tmp_path) as server:
        server.wait_for_state("digits", "ready")
        yield server


def test_ten_minutes(server: Server, recordings: Path) -> None:
    bank = load_bank(recordings, HELD_OUT_INDEXES)
    figures = measure(server, [recorded(bank, MINUTES, seed) for seed in range(STREAMS)])
    print(delays([figures]))
    assert figures.changed_finals == 0
    assert figures.files is not None
    assert figures.live.wer <= figures.files.wer + WORD_ERROR_MARGIN / 100
    # A doubled word is an insertion, a lost one a deletion.
    assert figures.live.insertions + figures.live.deletions <= figures.files.insertions + figures.files.deletions
