"""`multichannel`: calls of two talkers, through the routes and the bundled model; every word once and on its channel."""

import asyncio
import io
import json
from collections.abc import Iterator
from typing import Any

import jiwer
import numpy as np
import pytest
from fastapi.testclient import TestClient

from serve_app.api import create_api
from serve_app.engine.parakeet import ParakeetEngine
from serve_app.service import JobOptions
from serve_app.settings import ChannelSettings
from serve_app.window import SAMPLE_RATE
from testing import media
from testing.calls import Call, compose_call
from testing.digit_strings import Bank
from testing.fake_service import EngineService, assert_error, post

TURNS = 14
SAME_WORD_S = 0.3


@pytest.fixture(scope="module")
def calls(bank: Bank) -> list[Call]:
    """Some minutes, with turns that overlap."""
    return [compose_call(bank, TURNS, seed) for seed in range(4)]


@pytest.fixture
def server(engine: ParakeetEngine) -> EngineService:
    return EngineService(engine)


@pytest.fixture
def client(server: EngineService) -> Iterator[TestClient]:
    with TestClient(create_api(server.service), raise_server_exceptions=False) as client:
        yield client


def verbose(client: TestClient, data: bytes, **fields: Any) -> Any:
    asked = {"response_format": "verbose_json", "multichannel": "true", "timestamp_granularities[]": "word"}
    response = post(client, data, **asked | fields)
    assert response.status_code == 200, response.text
    return response.json()


def plain(words: list[str]) -> str:
    return " ".join(words).casefold().replace(".", "")


def errors(call: Call, body: Any) -> jiwer.WordOutput:
    """Of all channels together."""
    said = [plain(call.texts(channel)) for channel in range(len(call.words))]
    found = [plain([word["word"] for word in channel["words"]]) for channel in body["channels"]]
    return jiwer.process_words(said, found)


def test_every_word_is_on_its_channel(client: TestClient, calls: list[Call]) -> None:
    """As right as in a file of each channel alone: the model makes no error there."""
    for call in calls:
        body = verbose(client, media.wav(call.samples))
        assert errors(call, body).wer == 0
        for channel, said in enumerate(call.words):
            alone = verbose(client, media.wav(call.samples[:, channel]))
            assert [w["word"] for w in alone["words"]] == [w["word"] for w in body["channels"][channel]["words"]]
            for word, spoken in zip(body["channels"][channel]["words"], said, strict=True):
                assert word["start"] == pytest.approx(spoken.start_sample / SAMPLE_RATE, abs=SAME_WORD_S)


def test_the_answer_is_one_in_the_order_of_time(client: TestClient, calls: list[Call]) -> None:
    body = verbose(client, media.wav(calls[0].samples))
    starts = [segment["start"] for segment in body["segments"]]
    assert starts == sorted(starts)
    assert [segment["id"] for segment in body["segments"]] == list(range(len(starts)))
    assert body["text"] == " ".join(segment["text"] for segment in body["segments"])
    assert [channel["channel"] for channel in body["channels"]] == [0, 1]
    for channel in body["channels"]:
        own = [segment for segment in body["segments"] if segment["channel"] == channel["channel"]]
        assert channel["segments"] == own
        assert channel["text"] == " ".join(segment["text"] for segment in own)
        assert channel["words"] == [word for word in body["words"] if word["channel"] == channel["channel"]]
    assert body["duration"] == pytest.approx(len(calls[0].samples) / SAMPLE_RATE, abs=0.01)


def heard(call: Call, channel: int, word: Any) -> tuple[bool, bool]:
    """Whether the talker of this channel says this word at this time, and whether one of another channel does."""
    of_channels = [
        any(
            plain([word["word"]]) == plain([w.text]) and abs(word["start"] - w.start_sample / SAMPLE_RATE) < SAME_WORD_S
            for w in words
        )
        for words in call.words
    ]
    return of_channels[channel], any(of_channels[:channel] + of_channels[channel + 1 :])


@pytest.mark.parametrize(("gap_s", "max_doubled"), [((0.3, 1.5), 0.0), ((-1.0, 1.5), 0.025)], ids=["turns", "overlaps"])
def test_crosstalk_is_not_doubled(client: TestClient, bank: Bank, gap_s: tuple[float, float], max_doubled: float) -> None:
    """Both channels hear both talkers, one of them 20 dB below. Where both talk at once, the model may take a word of the other
    one for one of the own talker."""
    said = doubled = wrong = inserted = 0
    for seed in range(4):
        call = compose_call(bank, TURNS, seed, gap_s=gap_s, crosstalk_db=-20)
        data = media.wav(call.samples)
        body, whole = verbose(client, data), verbose(client, data, drop_crosstalk="false")
        found = errors(call, body)
        said += sum(map(len, call.words))
        wrong += found.insertions + found.deletions + found.substitutions
        inserted += errors(call, whole).insertions
        for channel in body["channels"]:
            doubled += sum(heard(call, channel["channel"], word) == (False, True) for word in channel["words"])
    assert inserted > 0.8 * said
    assert doubled <= max_doubled * said
    assert wrong <= (0.03 + 2 * max_doubled) * said


def test_the_setting_decides_where_the_request_does_not(engine: ParakeetEngine, bank: Bank) -> None:
    call = compose_call(bank, 4, 2, crosstalk_db=-20, gap_s=(0.5, 1.0))
    server = EngineService(engine, channels=ChannelSettings(drop_crosstalk=False))
    with TestClient(create_api(server.service)) as client:
        both, one = (
            len(verbose(client, media.wav(call.samples), **fields)["words"]) for fields in ({}, {"drop_crosstalk": "true"})
        )
    assert one <= 1.1 * sum(map(len, call.words))
    assert both >= 1.8 * sum(map(len, call.words))


@pytest.mark.parametrize(
    ("container", "codec", "rate"), [("flac", "flac", 16_000), ("mp3", "libmp3lame", 16_000), ("ogg", "libopus", 16_000)]
)
def test_mono_in_stereo_is_one_channel(
    server: EngineService, client: TestClient, bank: Bank, container: str, codec: str, rate: int
) -> None:
    call = compose_call(bank, 6, 0, channels=1, gap_s=(0.3, 1.0))
    data = media.encode(call.samples[:, 0], rate, container, codec, layout="stereo")
    body = verbose(client, data)
    assert [channel["channel"] for channel in body["channels"]] == [0]
    assert errors(call, body).wer == 0
    assert {segment["channel"] for segment in body["segments"]} == {0}
    # The copy cost the model nothing.
    assert {window.channel for window in server.windows} == {0}


def test_a_mono_file_has_one_channel(client: TestClient, calls: list[Call]) -> None:
    data = media.wav(calls[0].samples[:, 0])
    body, mono = verbose(client, data), verbose(client, data, multichannel="false")
    assert body.pop("channels")[0]["text"] == body["text"]
    for each in (*body["segments"], *body["words"]):
        assert each.pop("channel") == 0
    assert body == mono


def test_six_channels_and_silent_ones(client: TestClient, bank: Bank) -> None:
    call = compose_call(bank, 12, 3, channels=4, gap_s=(-0.3, 0.5))
    samples = np.zeros((len(call.samples), 6), np.float32)
    samples[:, [0, 2, 3, 5]] = call.samples
    body = verbose(client, media.wav(samples))
    assert [channel["channel"] for channel in body["channels"]] == list(range(6))
    texts = [plain([word["word"] for word in channel["words"]]) for channel in body["channels"]]
    assert [texts[n] for n in (0, 2, 3, 5)] == [plain(call.texts(channel)) for channel in range(4)]
    assert texts[1] == texts[4] == ""


def test_nine_channels_are_refused(client: TestClient) -> None:
    data = media.wav(np.random.default_rng(0).normal(0, 0.1, (16_000, 9)))
    assert "9 channels" in assert_error(post(client, data, multichannel="true"), 400, "invalid_audio", "multichannel")
    assert post(client, data).status_code == 200


def test_every_format_names_the_channels(client: TestClient, bank: Bank) -> None:
    call = compose_call(bank, 5, 2, gap_s=(0.3, 1.0))
    data = media.wav(call.samples)
    body = verbose(client, data)

    def written(response_format: str, **fields: str) -> str:
        return post(client, data, response_format=response_format, multichannel="true", **fields).text

    turns: list[tuple[int, str]] = []
    for segment in body["segments"]:
        if turns and turns[-1][0] == segment["channel"]:
            turns[-1] = turns[-1][0], f"{turns[-1][1]} {segment['text']}"
        else:
            turns.append((segment["channel"], segment["text"]))
    assert len(turns) >= 4
    assert written("text") == "".join(f"Channel {channel}: {text}\n" for channel, text in turns)
    table = [line.split("\t") for line in written("tsv").splitlines()]
    assert table[0] == ["start", "end", "text", "channel"]
    assert [(int(row[3]), row[2]) for row in table[1:]] == [(s["channel"], s["text"]) for s in body["segments"]]
    assert written("csv").splitlines()[0] == "Start (s),End (s),Text,Channel"
    assert all(line.endswith((",0", ",1")) for line in written("csv").splitlines()[1:])
    assert all(f"\nChannel {channel}: " in written("srt") for channel in (0, 1))
    assert all(f"\n<v Channel {channel}>" in written("vtt") for channel in (0, 1))
    found = json.loads(written("json"))
    assert found["channels"] == [{"channel": c["channel"], "text": c["text"]} for c in body["channels"]]
    assert found["text"] == body["text"]
    everything = post(client, data, multichannel="true").json()
    assert everything["csv_content"] == written("csv")
    assert everything["srt_content"] == written("srt")


def test_a_stream_has_the_channel_of_each_text(client: TestClient, calls: list[Call]) -> None:
    data = media.wav(calls[0].samples)
    body = verbose(client, data)
    response = post(client, data, multichannel="true", stream="true", response_format="verbose_json")
    events = [json.loads(line.removeprefix("data: ")) for line in response.text.splitlines() if line.startswith("data: ")]
    deltas = [event for event in events if event["type"] == "transcript.text.delta"]
    assert [(event["channel"], event["delta"].strip()) for event in deltas] == [
        (s["channel"], s["text"]) for s in body["segments"]
    ]
    assert "".join(event["delta"] for event in deltas) == events[-1]["text"] == body["text"]
    assert events[-1]["content"]["channels"][1]["text"] == body["channels"][1]["text"]


@pytest.mark.parametrize("response_format", ["verbose_json", "text", "srt", "vtt", "csv", "tsv", "json"])
def test_an_export_has_the_channels_too(client: TestClient, bank: Bank, response_format: str) -> None:
    data = media.wav(compose_call(bank, 4, 2).samples)
    body = verbose(client, data)
    given = {key: body[key] for key in ("language", "duration", "segments")} | {"response_format": response_format}
    exported = client.post("/v1/audio/transcriptions/export", json=given)
    expected = post(client, data, multichannel="true", response_format=response_format, **{"timestamp_granularities[]": "word"})
    if response_format == "verbose_json":
        found, wanted = exported.json(), expected.json()
        assert found["segments"] == wanted["segments"]
        assert found["channels"] == wanted["channels"]
    else:
        assert exported.text == expected.text


def test_an_export_of_some_channels_is_refused(client: TestClient) -> None:
    segments = [{"start": 0, "end": 1, "text": "one", "channel": 0}, {"start": 1, "end": 2, "text": "two"}]
    given = {"duration": 3, "segments": segments, "response_format": "text"}
    assert "channel" in assert_error(client.post("/v1/audio/transcriptions/export", json=given), 400, "invalid_value", "segments")


async def test_the_windows_of_all_channels_are_at_work_together(server: EngineService, calls: list[Call]) -> None:
    """And no more of them than of a file with one channel, however far the file goes on."""
    at_work = most = 0
    channels: set[int] = set()
    recognise = server.recognise

    async def counted(*arguments: Any) -> Any:
        nonlocal at_work, most
        at_work, most = at_work + 1, max(most, at_work + 1)
        channels.add(arguments[0].channel)
        await asyncio.sleep(0)
        try:
            return await recognise(*arguments)
        finally:
            at_work -= 1

    server.recognise = counted  # type: ignore[method-assign, assignment]
    samples = np.concatenate([call.samples for call in calls])
    recording = server.service.decoders.open(io.BytesIO(media.wav(samples)), multichannel=True)
    await server.service.transcribe_file(recording, server.service.settings.models[0], JobOptions())
    assert channels == {0, 1}
    assert most <= server.target_windows_in_flight(32.0)
    assert len(server.windows) > 2 * most
