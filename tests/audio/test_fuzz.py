"""The decoder decodes or refuses hundreds of damaged files, and never fails otherwise."""

import io

import pytest

from serve_app.audio.decoding import AudioFile
from serve_app.errors import AudioError
from testing import fuzz_media


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
