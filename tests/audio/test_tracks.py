"""Which audio track of a file is decoded."""

import io

import av
import numpy as np
import pytest
from av.stream import Disposition

from serve_app.audio.decoding import AudioFile
from serve_app.errors import AudioError
from serve_app.window import SAMPLE_RATE, Samples
from testing import media


def decode(data: bytes, track: int | None = None) -> Samples:
    return np.concatenate(list(AudioFile(io.BytesIO(data), track=track).blocks()))


def tracks_of(container: str, default: int | None, *lengths_s: float) -> bytes:
    """A file with an audio track of each length, seconds; the track `default` is marked so."""
    file = io.BytesIO()
    with av.open(file, "w", format=container) as output:
        sources = [av.open(io.BytesIO(media.make("mkv, flac", media.tone(length_s)))) for length_s in lengths_s]
        streams = [output.add_stream_from_template(source.streams.audio[0]) for source in sources]
        for number, stream in enumerate(streams):
            stream.disposition = Disposition.default if number == default else Disposition(0)
        for source, stream in zip(sources, streams, strict=True):
            for packet in source.demux(audio=0):
                packet.stream = stream
                if packet.size:
                    output.mux(packet)
    return file.getvalue()


def length_s(samples: Samples) -> float:
    return len(samples) / SAMPLE_RATE


@pytest.mark.parametrize(("default", "expected_s"), [(None, 1.0), (0, 1.0), (1, 2.0), (2, 3.0)])
def test_the_default_track_is_decoded_else_the_first(default: int | None, expected_s: float) -> None:
    assert length_s(decode(tracks_of("matroska", default, 1.0, 2.0, 3.0))) == pytest.approx(expected_s, abs=0.01)


@pytest.mark.parametrize("track", [0, 1, 2])
def test_a_track_can_be_chosen(track: int) -> None:
    assert length_s(decode(tracks_of("matroska", 1, 1.0, 2.0, 3.0), track)) == pytest.approx(track + 1.0, abs=0.01)


@pytest.mark.parametrize(("track", "known"), [(2, "audio tracks 0 to 1"), (-1, "audio tracks 0 to 1")])
def test_a_track_that_does_not_exist(track: int, known: str) -> None:
    with pytest.raises(AudioError, match=known) as caught:
        decode(tracks_of("matroska", 0, 1.0, 1.0), track)
    assert caught.value.param == "track"


def test_the_tracks_of_a_video_are_its_audio_streams() -> None:
    assert length_s(decode(media.make("mkv", media.tone(1.0)), 0)) == pytest.approx(1.0, abs=0.05)
