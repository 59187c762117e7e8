"""Seed A's WebSocket protocol: how a media file is told from raw samples, and which of its tracks is transcribed."""

import numpy as np
import pytest
from fastapi.testclient import TestClient

from serve_app.window import SAMPLE_RATE, Lane, Samples
from testing import media
from testing.fake_service import EngineService, post
from testing.odd_media import encode_at, quicktime_without_ftyp
from testing.seed_socket_client import as_floats, failure, transcribed

KINDS = [
    ("mpegts", "aac", 48_000, {}),
    ("mpegts", "ac3", 48_000, {"mpegts_m2ts_mode": "1"}),
    ("w64", "pcm_s16le", 16_000, {}),
    ("voc", "pcm_s16le", 16_000, {}),
    ("ac3", "ac3", 48_000, {}),
]
"""Container, codec, rate and options of files without a well-known magic number."""


@pytest.mark.parametrize(("container", "codec", "rate", "muxer"), KINDS, ids=["ts", "m2ts", "w64", "voc", "ac3"])
def test_the_text_is_the_same_as_over_rest(
    client: TestClient, speech: Samples, text: str, container: str, codec: str, rate: int, muxer: dict[str, str]
) -> None:
    data = encode_at(rate, as_floats(speech), container, codec, **muxer)
    assert transcribed(client, data, {"sample_rate": 16_000, "channels": 1, "format": "binary"})[-1]["text"] == text
    assert post(client, data).json()["text"] == text


def test_quicktime_without_ftyp(client: TestClient, speech: Samples, text: str) -> None:
    assert transcribed(client, quicktime_without_ftyp(as_floats(speech)), None)[-1]["text"] == text


@pytest.mark.parametrize("config", [None, {"sample_rate": 16_000, "channels": 1, "format": "binary"}])
@pytest.mark.parametrize("data", [np.random.default_rng(0).bytes(50_000), b"This is a letter.\n" * 3_000], ids=["bytes", "text"])
def test_bytes_that_are_neither_media_nor_samples(client: TestClient, data: bytes, config: dict[str, object] | None) -> None:
    error = failure(client, [*([config] if config else []), data, "END"], 1003)
    assert (error["code"], error["param"]) == ("invalid_audio", "file")


def test_a_file_that_is_declared_as_media_is_never_raw_samples(client: TestClient, speech: Samples, text: str) -> None:
    assert failure(client, [{"media": True}, speech.tobytes(), "END"], 1003)["code"] == "invalid_audio"
    assert transcribed(client, media.wav(speech), {"media": True})[-1]["text"] == text


def test_declared_samples_are_never_a_media_file(client: TestClient, server: EngineService) -> None:
    transcribed(client, media.wav(np.zeros(SAMPLE_RATE, np.int16)), {"encoding": "pcm_s16le"})
    assert set(server.lanes) == {Lane.LIVE}


class TestTracks:
    @pytest.fixture
    def data(self, speech: Samples) -> bytes:
        """Two tracks: silence, then speech, which is the default."""
        return media.with_tracks("matroska", [0 * as_floats(speech), as_floats(speech)], default=1)

    def test_over_the_socket(self, client: TestClient, data: bytes, text: str) -> None:
        assert transcribed(client, data, None)[-1]["text"] == text
        assert transcribed(client, data, {"track": 0})[-1]["text"] == ""
        assert failure(client, [{"track": 2}, data, "END"], 1003)["param"] == "track"

    @pytest.mark.parametrize("route", ["transcriptions", "translations"])
    def test_over_rest(self, client: TestClient, data: bytes, text: str, route: str) -> None:
        def text_of(**fields: str) -> str:
            response = client.post(f"/v1/audio/{route}", files={"file": ("x", data)}, data=fields)
            return str(response.json()["text"]) if response.status_code == 200 else str(response.json()["error"]["param"])

        assert [text_of(), text_of(track="1"), text_of(track="0"), text_of(track="2")] == [text, text, "", "track"]
