"""Damaged files by the hundred: to the decoder, and to a running server."""

import asyncio
import io
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

from serve_app.audio.decoding import AudioFile
from serve_app.errors import AudioError
from serve_app.window import SAMPLE_RATE
from testing import fuzz_media, media
from testing.paths import ROOT
from testing.server import Server, serve_run

FILES = 2000


@pytest.fixture(scope="module")
def seeds() -> dict[str, bytes]:
    return fuzz_media.seed_files()


def test_the_same_seed_gives_the_same_files(seeds: dict[str, bytes]) -> None:
    first, again, other = (list(fuzz_media.damaged_files(seeds, 60, seed)) for seed in (1, 1, 2))
    assert first == again
    assert first != other
    assert len({data for _, data in first} - set(seeds.values())) > 50


def test_a_damaged_file_is_decoded_or_refused(seeds: dict[str, bytes]) -> None:
    decoded = refused = 0
    for label, data in fuzz_media.damaged_files(seeds, 600, 3):
        try:
            samples = sum(map(len, AudioFile(io.BytesIO(data)).blocks()))
        except AudioError:
            refused += 1
        except Exception as error:
            raise AssertionError(label) from error
        else:
            assert samples > 0, label
            decoded += 1
    assert min(decoded, refused) > 150


@pytest.mark.serve
class TestServer:
    @pytest.fixture(scope="class")
    @classmethod
    def temporary(cls, tmp_path_factory: pytest.TempPathFactory) -> Path:
        """Where the server puts its temporary files."""
        return tmp_path_factory.mktemp("temporary")

    @pytest.fixture(scope="class")
    @classmethod
    def server(cls, tmp_path_factory: pytest.TempPathFactory, temporary: Path) -> Iterator[Server]:
        # Ray's sockets, whose paths must be short, stay where they always are.
        env = {"TMPDIR": str(temporary), "RAY_TMPDIR": "/tmp"}
        with serve_run(ROOT / "configs" / "demo.yaml", tmp_path_factory.mktemp("fuzz"), env=env) as server:
            server.wait_for_state("digits", "ready")
            yield server

    def test_every_format_is_understood(self, server: Server, seeds: dict[str, bytes]) -> None:
        answers = {name: server.transcribe(data) for name, data in seeds.items()}
        assert {name: answer.json().get("text") for name, answer in answers.items()} == dict.fromkeys(seeds, fuzz_media.SPOKEN)

    def test_damaged_files(self, server: Server, temporary: Path, seeds: dict[str, bytes]) -> None:
        """No failure, no hang, no wrong answer to the good files between them, and nothing left behind."""
        # What the model takes for its longest window it keeps.
        assert server.transcribe(media.wav(np.random.default_rng(0).normal(0, 0.1, 100 * SAMPLE_RATE))).status_code == 200
        asyncio.run(fuzz_media.send(server.url, fuzz_media.damaged_files(seeds, 100, 1)))
        before, files_before = fuzz_media.Load.of(server.process_id), set(temporary.iterdir())
        report = asyncio.run(fuzz_media.send(server.url, fuzz_media.damaged_files(seeds, FILES, 2)))
        after = fuzz_media.Load.of(server.process_id)
        assert report.failures == []
        assert report.wrong_texts == []
        assert report.statuses.total() == FILES
        assert set(report.statuses) == {200, 400}
        assert min(report.statuses.values()) > FILES // 4
        assert len(before.held_mb) >= 4
        growth_mb = after.growth_mb(before)
        print(f"{report.statuses}, growth in MB: {growth_mb}")
        assert max(growth_mb.values()) < 100
        assert (before.temporary_files, after.temporary_files) == (0, 0)
        assert set(temporary.iterdir()) == files_before
