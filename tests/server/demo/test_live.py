"""Live streams against the running server, by the websockets library: at the pace of speech, and through a replica's death."""

import asyncio
import base64
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import openai
import psutil
import pytest
import soxr
import websockets
from websockets.asyncio.client import ClientConnection

from serve_app.window import SAMPLE_RATE, Samples
from testing import media
from testing.digit_strings import DigitString, with_pauses
from testing.paths import ROOT
from testing.server import Server, serve_run
from testing.streams import REALTIME, connect
from tests.server.demo.conftest import IDLE_STREAMS
from tests.server.demo.test_long_recordings import words_of

pytestmark = [pytest.mark.serve, pytest.mark.slow]

FRAME_S = 0.1
STREAMS = 3

FILE_WINDOWS = 4
"""More than a stream has in a second."""

WRONG: list[tuple[list[str | bytes], str, int]] = [
    (["{not json"], "invalid_request", 1007),
    ([json.dumps({"sample_rate": "fast"})], "invalid_request", 1007),
    ([json.dumps({"model": "none"})], "model_not_found", 1008),
    ([json.dumps({"encoding": "pcm_s16le", "sample_rate": 1}), bytes(2)], "invalid_audio", 1003),
    (["not the configuration"], "invalid_request", 1007),
    ([bytes(9_000_000)], "upload_too_large", 1009),
]
"""Frames, and the code and close code that answer them."""


@pytest.fixture(scope="module")
def spoken(strings: list[DigitString]) -> list[DigitString]:
    """Less than in other tests, as it is sent at the pace of speech."""
    return strings[2:5]


@pytest.fixture(scope="module")
def speech(spoken: list[DigitString]) -> Samples:
    """The strings with pauses between, int16 [samples]."""
    return with_pauses(spoken)


async def speak(socket: ClientConnection, speech: Samples) -> None:
    """Send a recording at the pace of speech."""
    await socket.send(json.dumps({"encoding": "pcm_s16le", "interim_results": True}))
    step = round(FRAME_S * SAMPLE_RATE)
    for start in range(0, len(speech), step):
        await socket.send(speech[start : start + step].tobytes())
        await asyncio.sleep(FRAME_S)
    await socket.send("END")


async def listen(socket: ClientConnection) -> list[dict[str, Any]]:
    messages = [json.loads(message) async for message in socket]
    assert socket.close_code == 1000
    return messages


async def stream(server: Server, speech: Samples) -> list[dict[str, Any]]:
    async with connect(server) as socket:
        speaking = asyncio.create_task(speak(socket, speech))
        messages = await listen(socket)
        await speaking
    return messages


def check_finals(messages: list[dict[str, Any]], text: str) -> None:
    """Final words never change, and are all there once."""
    said: list[str] = []
    seen: list[str] = []
    for message in messages[:-1]:
        if message["type"] == "segment":
            said += message["text"].split()
        words = [word["word"] for word in message["words"] if word.get("is_final")] if message["type"] == "partial" else []
        final = said + words
        length = min(len(final), len(seen))
        assert final[:length] == seen[:length]
        seen = max(seen, final, key=len)
    assert " ".join(said) == messages[-1]["text"] == text


async def failure(server: Server, frames: Sequence[str | bytes]) -> tuple[str, int | None]:
    """The code of the error and of the close that answer these frames."""
    async with connect(server) as socket:
        for frame in frames:
            await socket.send(frame)
        error = json.loads(await socket.recv())
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        return error["code"], socket.close_code


async def test_streams_at_the_pace_of_speech(server: Server, speech: Samples, spoken: list[DigitString]) -> None:
    text = " ".join(string.text for string in spoken)
    for messages in await asyncio.gather(*(stream(server, speech) for _ in range(STREAMS))):
        check_finals(messages, text)
        assert sum(message["type"] == "partial" for message in messages) > 10


async def test_a_replica_that_dies(server: Server, speech: Samples, spoken: list[DigitString]) -> None:
    """In the middle of a stream and of a file."""
    file, log_before = media.wav(np.tile(speech, 80)), len(server.log)
    expected = words(server, file)
    listening = asyncio.create_task(stream(server, speech))
    await asyncio.sleep(len(speech) / SAMPLE_RATE / 3)
    transcribing = asyncio.create_task(asyncio.to_thread(words, server, file))
    before = server.model("digits")["replicas"][0]["windows"]
    (replica,) = server.processes("model digits")
    while server.model("digits")["replicas"][0]["windows"] < before + FILE_WINDOWS:
        assert not transcribing.done(), "the file was done before the replica died"
        await asyncio.sleep(0.05)
    replica.kill()
    check_finals(await listening, " ".join(string.text for string in spoken))
    assert await transcribing == expected
    assert "of digits was lost" in server.log[log_before:]
    assert server.processes("model digits") != [replica]


def words(server: Server, file: bytes) -> list[tuple[str, float, float]]:
    """Words with start and end, seconds. Confidences depend, in their last digits, on the batches."""
    return [(word.text, word.start_s, word.end_s) for word in words_of(server, "speech.wav", file)]


async def test_misuse_gets_its_close_code_leaves_nothing_behind_and_disturbs_nobody(
    server: Server, speech: Samples, spoken: list[DigitString]
) -> None:
    (ingress,) = server.processes("ingress")
    before = connections(ingress)
    listening = asyncio.create_task(stream(server, speech))
    gone = await asyncio.gather(*(connect(server) for _ in range(20)))
    for number, socket in enumerate(gone):
        await socket.send(speech[:8_000].tobytes() if number % 2 else media.wav(speech)[:20_000])
        socket.transport.abort()
    raw = json.dumps({"encoding": "pcm_s16le", "format": "base64"})
    answers = await asyncio.gather(*(failure(server, frames) for frames, *_ in WRONG), failure(server, [raw, "%%%"]))
    assert answers == [*((code, close_code) for _, code, close_code in WRONG), ("invalid_request", 1007)]
    check_finals(await listening, " ".join(string.text for string in spoken))
    assert connections(ingress) <= before + 2
    assert not server.uploads(ingress)
    assert "ignored GeneratorExit" not in server.log


async def test_a_frame_that_no_server_takes(server: Server) -> None:
    async with connect(server) as socket:
        await socket.send(bytes(20_000_000))
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1009


@pytest.mark.parametrize(("container", "codec"), [("mp3", "libmp3lame"), ("webm", "libopus"), ("wav", "pcm_s16le")])
async def test_a_media_file_gives_what_rest_gives_and_begins_before_its_end(
    server: Server, speech: Samples, container: str, codec: str
) -> None:
    rate = 48_000 if codec == "libopus" else SAMPLE_RATE
    samples = soxr.resample(np.tile(speech / 32768, 5), SAMPLE_RATE, rate).astype(np.float32)
    data = media.encode(samples, rate, container, codec)
    segments = server.transcribe(data, response_format="verbose_json").json()["segments"]
    half = 2 * len(data) // 3
    async with connect(server) as socket:
        for start in range(0, half, 16_000):
            await socket.send(data[start : min(half, start + 16_000)])
        first = json.loads(await socket.recv())
        assert first["text"] == segments[0]["text"]
        for start in range(half, len(data), 16_000):
            await socket.send(data[start : start + 16_000])
        await socket.send("END")
        messages = [first, *await listen(socket)]
    assert [message["text"] for message in messages[:-1]] == [segment["text"] for segment in segments]
    for message, segment in zip(messages, segments, strict=False):
        assert (message["start"], message["end"]) == pytest.approx((segment["start"], segment["end"]), abs=0.09)


@pytest.mark.parametrize("is_manual", [False, True], ids=["server_vad", "manual"])
async def test_openais_realtime_client(server: Server, speech: Samples, spoken: list[DigitString], is_manual: bool) -> None:
    data = media.pcm(soxr.resample(speech / 32768, SAMPLE_RATE, 24_000).astype(np.float32), "pcm_s16le")
    said = " ".join(string.text for string in spoken)
    detection: Any = None if is_manual else {"type": "server_vad"}
    audio: Any = {"input": {"format": {"type": "audio/pcm", "rate": 24_000}, "turn_detection": detection}}
    deltas, transcripts = "", list[str]()
    async with (
        openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="any") as client,
        client.realtime.connect(extra_query={"intent": "transcription"}) as connection,
    ):
        await connection.session.update(session={"type": "transcription", "audio": audio})
        for start in range(0, len(data), 4_800):
            await connection.input_audio_buffer.append(audio=base64.b64encode(data[start : start + 4_800]).decode())
        if is_manual:
            await connection.input_audio_buffer.commit()
        async for event in connection:
            assert event.type != "error", event
            if event.type == "conversation.item.input_audio_transcription.delta":
                deltas += event.delta or ""
            elif event.type == "conversation.item.input_audio_transcription.completed":
                transcripts.append(event.transcript)
                deltas += " "
                if len(" ".join(transcripts)) >= len(said):
                    break
    assert " ".join(transcripts) == deltas.strip() == said
    assert len(transcripts) == 1 if is_manual else len(transcripts) >= len(spoken)


async def test_a_browsers_realtime_key(server: Server) -> None:
    protocols: Any = ["realtime", "openai-insecure-api-key.any"]
    async with connect(server, REALTIME, subprotocols=protocols) as socket:
        assert socket.subprotocol == "realtime"
        assert json.loads(await socket.recv())["type"] == "session.created"


async def test_connections_that_say_nothing_are_closed_and_disturb_nobody(
    server: Server, speech: Samples, spoken: list[DigitString]
) -> None:
    (ingress,) = server.processes("ingress")
    before = connections(ingress)
    idle = await asyncio.gather(*(connect(server) for _ in range(IDLE_STREAMS)))
    gone = await asyncio.gather(*(connect(server) for _ in range(10)))
    for socket in gone:
        await socket.send(speech[:8_000].tobytes())
        socket.transport.abort()
    check_finals(await stream(server, speech), " ".join(string.text for string in spoken))
    for socket in idle:
        error = json.loads(await socket.recv())
        assert error["code"] == "stream_idle"
        with pytest.raises(websockets.ConnectionClosed):
            await socket.recv()
        assert socket.close_code == 1008
    assert connections(ingress) <= before + 2


def connections(process: psutil.Process) -> int:
    return len(process.net_connections())


@pytest.mark.long
async def test_a_sender_that_has_to_wait_is_not_taken_for_dead(tmp_path: Path) -> None:
    seconds, pace = 400, 0.25
    model = {"name": "slow", "source": "simulated", "min_replicas": 1, "simulation": {"step_s": 0, "seconds_per_audio_s": pace}}
    noise = np.random.default_rng(0).integers(-9_000, 9_000, SAMPLE_RATE, dtype=np.int16)
    with serve_run(ROOT / "configs" / "demo.yaml", tmp_path, args={"models": [model]}) as server:
        server.wait_for_state("slow", "ready")
        async with connect(server, ping_timeout=None) as socket:
            await socket.send(json.dumps({"encoding": "pcm_s16le"}))
            for _ in range(seconds):
                await socket.send(noise.tobytes())
            await socket.send("END")
            last = (await listen(socket))[-1]
    assert last["final_duration_processed_seconds"] == seconds
