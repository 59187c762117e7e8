"""Which audio track of a file is decoded."""

import io

import numpy as np
import pytest

from serve_app.audio.decoding import AudioFile
from serve_app.errors import AudioError
from serve_app.window import SAMPLE_RATE, Samples
from testing import media

TONES = [media.tone(1.0), media.tone(2.0), media.tone(3.0)]
"""Audio of three tracks."""


def decode(data: bytes, track: int | None = None) -> Samples:
    return np.concatenate(list(AudioFile(io.BytesIO(data), track=track).blocks()))


def length_s(samples: Samples) -> float:
    return len(samples) / SAMPLE_RATE


@pytest.mark.parametrize(("default", "expected_s"), [(None, 1.0), (0, 1.0), (1, 2.0), (2, 3.0)])
def test_the_default_track_is_decoded_else_the_first(default: int | None, expected_s: float) -> None:
    assert length_s(decode(media.with_tracks("matroska", TONES, default))) == pytest.approx(expected_s, abs=0.01)


@pytest.mark.parametrize("track", [0, 1, 2])
def test_a_track_can_be_chosen(track: int) -> None:
    assert length_s(decode(media.with_tracks("matroska", TONES, 1), track)) == pytest.approx(track + 1.0, abs=0.01)


@pytest.mark.parametrize(("track", "known"), [(2, "audio tracks 0 to 1"), (-1, "audio tracks 0 to 1")])
def test_a_track_that_does_not_exist(track: int, known: str) -> None:
    with pytest.raises(AudioError, match=known) as caught:
        decode(media.with_tracks("matroska", TONES[:2], 0), track)
    assert caught.value.param == "track"


def test_the_tracks_of_a_video_are_its_audio_streams() -> None:
    assert length_s(decode(media.make("mkv", media.tone(1.0)), 0)) == pytest.approx(1.0, abs=0.05)
