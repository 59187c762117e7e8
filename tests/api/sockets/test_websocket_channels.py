"""Seed A's WebSocket protocol with `multichannel`: files as over REST, and live calls, every word once and on its channel."""

from typing import Any

import numpy as np
import pytest
import soxr
from fastapi.testclient import TestClient

from serve_app.window import SAMPLE_RATE, Lane
from testing import media
from testing.calls import Call, compose_call
from testing.digit_strings import Bank
from testing.fake_service import EngineService, post
from testing.seed_socket_client import failure, transcribed

SEPARATE = {"encoding": "pcm_s16le", "channels": 2, "multichannel": True}
SAME = ("id", "text", "start", "end", "seek", "tokens", "channel")
"""Fields of a segment that do not depend on whether the end of the file is known."""

SAME_WORD_S = 0.3


@pytest.fixture(scope="module")
def call(bank: Bank) -> Call:
    """A minute, with turns that overlap."""
    return compose_call(bank, 10, 1)


def plain(text: str) -> str:
    return text.casefold().replace(".", "")


def texts(segments: list[dict[str, Any]], channels: int = 2) -> list[str]:
    return [plain(" ".join(s["text"] for s in segments if s["channel"] == channel)) for channel in range(channels)]


def said(call: Call) -> list[str]:
    return [plain(" ".join(call.texts(channel))) for channel in range(len(call.words))]


@pytest.mark.parametrize(("container", "codec"), [("wav", "pcm_s16le"), ("flac", "flac")])
def test_a_file_is_as_over_rest(client: TestClient, call: Call, container: str, codec: str) -> None:
    data = media.encode(call.samples, SAMPLE_RATE, container, codec, layout="stereo")
    *segments, last = transcribed(client, data, {"multichannel": True}, 32_000)
    answer = post(client, data, multichannel="true").json()
    assert texts(segments) == said(call)
    assert [[segment[name] for name in SAME] for segment in segments] == [
        [segment[name] for name in SAME] for segment in answer["segments"]
    ]
    assert last["channels"] == [{"channel": c["channel"], "text": c["text"]} for c in answer["channels"]]
    for name in ("text", "csv_content", "srt_content"):
        assert last[name] == answer[name]


def test_a_file_whose_channels_are_mixed_has_none(client: TestClient, call: Call) -> None:
    *segments, last = transcribed(client, media.wav(call.samples), None, 32_000)
    assert "channels" not in last
    assert not any("channel" in segment for segment in segments)


def test_mono_in_stereo_is_one_channel(client: TestClient, bank: Bank) -> None:
    mono = compose_call(bank, 3, 0, channels=1).samples
    *segments, last = transcribed(client, media.wav(mono.repeat(2, axis=1)), {"multichannel": True}, 32_000)
    assert [channel["channel"] for channel in last["channels"]] == [0]
    assert {segment["channel"] for segment in segments} == {0}


def test_crosstalk_is_left_out_unless_the_client_wants_it(client: TestClient, bank: Bank) -> None:
    call = compose_call(bank, 4, 2, crosstalk_db=-20, gap_s=(0.5, 1.0))
    one, both = (
        len(transcribed(client, media.wav(call.samples), {"multichannel": True, **more}, 32_000)[-1]["text"].split())
        for more in ({}, {"drop_crosstalk": False})
    )
    assert one <= 1.1 * sum(map(len, call.words))
    assert both >= 1.8 * sum(map(len, call.words))


def test_live_every_word_is_on_its_channel(client: TestClient, server: EngineService, call: Call) -> None:
    data = media.pcm(call.samples, "pcm_s16le")
    *messages, last = transcribed(client, data, {**SEPARATE, "interim_results": True}, 12_800)
    segments = [message for message in messages if message["type"] == "segment"]
    partials = [message for message in messages if message["type"] == "partial"]
    assert texts(segments) == said(call)
    assert [segment["id"] for segment in segments] == list(range(len(segments)))
    assert {message["channel"] for message in partials} == {0, 1}
    for channel, words in enumerate(call.words):
        found = [word for segment in segments if segment["channel"] == channel for word in segment["words"]]
        for word, spoken in zip(found, words, strict=True):
            assert word["start"] == pytest.approx(spoken.start_sample / SAMPLE_RATE, abs=SAME_WORD_S)
    in_time = sorted(segments, key=lambda segment: segment["start"])
    assert last["text"] == " ".join(segment["text"] for segment in in_time)
    assert [plain(channel["text"]) for channel in last["channels"]] == said(call)
    rows = [line.split(",") for line in last["csv_content"].splitlines()]
    assert rows[0] == ["Start (s)", "End (s)", "Text", "Channel"]
    assert [(row[2], int(row[3])) for row in rows[1:]] == [(s["text"], s["channel"]) for s in in_time]
    assert all(f"Channel {channel}: " in last["srt_content"] for channel in (0, 1))
    assert last["total_segments"] == len(segments)
    assert last["final_duration_processed_seconds"] == pytest.approx(len(call.samples) / SAMPLE_RATE, abs=0.01)
    assert set(server.lanes) == {Lane.LIVE}


@pytest.mark.parametrize(
    ("rate", "encoding", "channels"), [(8_000, "mulaw", 3), (48_000, "pcm_f32le", 2)], ids=["telephone", "studio"]
)
def test_live_in_other_forms(client: TestClient, bank: Bank, rate: int, encoding: Any, channels: int) -> None:
    """The last channel is silent."""
    call = compose_call(bank, 4, 3, channels=channels - 1, gap_s=(0.3, 1.0))
    samples = soxr.resample(np.pad(call.samples, ((0, 0), (0, 1))), SAMPLE_RATE, rate)
    config = {**SEPARATE, "encoding": encoding, "sample_rate": rate, "channels": channels}
    *segments, last = transcribed(client, media.pcm(samples, encoding), config, 9_999)
    assert texts(segments, channels) == [*said(call), ""]
    assert [channel["channel"] for channel in last["channels"]] == list(range(channels))


def test_live_channels_are_mixed_unless_they_are_to_be_separate(client: TestClient, bank: Bank) -> None:
    call = compose_call(bank, 4, 2, gap_s=(0.5, 1.0))
    data = media.pcm(call.samples, "pcm_s16le")
    *segments, last = transcribed(client, data, {**SEPARATE, "multichannel": False}, 12_800)
    assert "channels" not in last
    assert not any("channel" in segment for segment in segments)
    in_time = sorted((word.start_sample, word.text) for words in call.words for word in words)
    assert plain(last["text"]) == plain(" ".join(text for _, text in in_time))


def test_one_channel_is_a_channel_too(client: TestClient, bank: Bank) -> None:
    call = compose_call(bank, 2, 2, channels=1)
    *segments, last = transcribed(client, media.pcm(call.samples, "pcm_s16le"), {**SEPARATE, "channels": 1}, 12_800)
    assert texts(segments, 1) == said(call)
    assert [channel["channel"] for channel in last["channels"]] == [0]


def test_nine_channels_are_refused(client: TestClient) -> None:
    error = failure(client, [{**SEPARATE, "channels": 9}, bytes(18)], 1003)
    assert (error["code"], error["param"]) == ("invalid_audio", "channels")
