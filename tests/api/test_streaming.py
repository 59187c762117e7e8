"""`stream=true`: text while later audio is still in progress, validated with the types of OpenAI's client."""

import asyncio
import io
import json
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from fastapi.testclient import TestClient
from openai.types.audio import TranscriptionTextDeltaEvent, TranscriptionTextDoneEvent

from serve_app.api import create_api, streaming
from serve_app.errors import EngineError, Overloaded
from serve_app.transcript import Token
from serve_app.window import Job, Lane, Window
from testing import media
from testing.fake_service import NOISE, FakeService, assert_error, decoders, post

# Noise, with silences in between that end segments.
SPEECH = [
    part
    for n in range(5)
    for part in (np.random.default_rng(n).normal(0, 0.1, 20 * 8_000).astype(np.float32), np.zeros(3 * 8_000, np.float32))
]
LONG = media.wav(np.concatenate(SPEECH), 8_000, "PCM_U8")


class HaltingService(FakeService):
    """Windows from index `halt_at` on wait for `gate`, then fail with `failure` if there is one."""

    halt_at = 10**6

    def __init__(self) -> None:
        super().__init__()
        self.gate = asyncio.Event()
        self.gate.set()

    async def recognise(self, window: Window, lane: Lane, job: Job) -> list[Token]:
        failure, self.failure = self.failure, None
        if window.index >= self.halt_at:
            await self.gate.wait()
            if failure is not None:
                raise failure
        try:
            return await super().recognise(window, lane, job)
        finally:
            self.failure = failure


@pytest.fixture
def server() -> HaltingService:
    return HaltingService()


@pytest.fixture
def client(server: HaltingService) -> Iterator[TestClient]:
    with TestClient(create_api(server.service), raise_server_exceptions=False) as client:
        yield client


def events_of(client: TestClient, data: bytes = LONG, fields: dict[str, str] = {}) -> list[dict[str, Any]]:  # noqa: B006
    answer = post(client, data, stream="true", **fields)
    assert answer.status_code == 200, answer.text
    assert answer.headers["content-type"].startswith("text/event-stream")
    return [json.loads(line.removeprefix("data: ")) for line in answer.text.splitlines() if line.startswith("data: ")]


def test_the_deltas_are_the_text(client: TestClient) -> None:
    whole = post(client, LONG).json()
    *deltas, done = events_of(client)
    assert len(deltas) >= 3
    assert "".join(TranscriptionTextDeltaEvent.model_validate(delta).delta for delta in deltas) == whole["text"]
    assert TranscriptionTextDoneEvent.model_validate(done).text == whole["text"]
    assert done["usage"]["seconds"] == whole["usage"]["seconds"] == 115
    assert done["usage"]["output_tokens"] == len(whole["text"].split())


def test_silence_is_an_empty_text(client: TestClient) -> None:
    (done,) = events_of(client, media.wav(np.zeros(16_000)))
    usage = {"type": "tokens", "input_tokens": 13, "output_tokens": 0, "total_tokens": 13, "seconds": 1.0}
    assert done == {"type": "transcript.text.done", "text": "", "usage": usage}


def test_logprobs_are_those_of_the_text(client: TestClient) -> None:
    *deltas, done = events_of(client, fields={"include[]": "logprobs"})
    assert TranscriptionTextDoneEvent.model_validate(done).logprobs
    assert [entry for delta in deltas for entry in delta["logprobs"]] == done["logprobs"]
    for event in (*deltas, done):
        text = event["delta"] if "delta" in event else event["text"]
        assert "".join(entry["token"] for entry in event["logprobs"]).strip() == text.strip()


def test_progress_goes_up_to_the_length_of_the_file(client: TestClient) -> None:
    events = events_of(client, fields={"include[]": "progress"})
    progress = [event for event in events if event["type"] == "transcript.progress"]
    done_s = [event["audio_s"] for event in progress]
    assert len(done_s) >= 4
    assert done_s == sorted(done_s)
    assert done_s[-1] == 115
    assert {event["total_s"] for event in progress} == {115}
    assert [event["windows_done"] for event in progress] == list(range(1, len(progress) + 1))
    assert all(event["windows_done"] <= event["windows_planned"] <= len(progress) for event in progress)
    assert [event for event in events if event not in progress] == events_of(client)


@pytest.mark.parametrize("response_format", ["json", "text", "srt", "vtt", "csv", "tsv", "verbose_json"])
def test_the_last_event_carries_the_transcript_in_the_requested_format(client: TestClient, response_format: str) -> None:
    fields = {"response_format": response_format, "timestamp_granularities[]": "word"}
    answer = post(client, LONG, **fields)
    content = events_of(client, fields=fields)[-1]["content"]
    assert content == (answer.json() if response_format.endswith("json") else answer.content.decode())


def test_a_failure_before_the_first_event_has_its_status(client: TestClient, server: HaltingService) -> None:
    assert_error(post(client, b"no media", stream="true"), 400, "invalid_audio", "file")
    server.halt_at, server.failure = 0, Overloaded("full")
    assert_error(post(client, NOISE, stream="true"), 429, "overloaded")


@pytest.mark.parametrize(("failure", "code"), [(EngineError("broken"), "engine_error"), (KeyError("secret"), "engine_error")])
def test_a_later_failure_is_an_event(client: TestClient, server: HaltingService, failure: Exception, code: str) -> None:
    server.halt_at, server.failure = 3, failure
    *deltas, last = events_of(client)
    assert deltas
    assert all(delta["type"] == "transcript.text.delta" for delta in deltas)
    assert set(last) == {"error"}
    assert last["error"]["code"] == code
    assert "secret" not in last["error"]["message"]


async def test_text_is_sent_while_later_windows_are_in_progress_and_pings_keep_the_connection_open(
    server: HaltingService, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(streaming, "PING_S", 0.05)
    server.halt_at = 3
    server.gate.clear()
    events = server.service.transcribe_events(_audio(), server.service.find_model(None))
    response: Any = await streaming.stream(events)
    parts = response.body_iterator
    assert b"transcript.text.delta" in await anext(parts)
    async for part in parts:
        if part == b": ping\n\n":
            break
        assert b"transcript.text.delta" in part
    server.gate.set()
    rest = [part async for part in parts]
    assert b"transcript.text.done" in rest[-1]


async def test_the_work_stops_when_the_client_disconnects(server: HaltingService) -> None:
    server.halt_at = 3
    server.gate.clear()
    response: Any = await streaming.stream(server.service.transcribe_events(_audio(), server.service.find_model(None)))
    await anext(response.body_iterator)
    all_windows = server.service.settings.limits.max_windows_in_flight
    assert server.service.admission.windows_per_job == all_windows
    with server.service.admission.job():
        assert server.service.admission.windows_per_job == all_windows // 2
        await response.body_iterator.aclose()
        assert server.service.admission.windows_per_job == all_windows


def _audio() -> Any:
    return decoders().open(io.BytesIO(LONG))
