"""Metrics of jobs, by way of the service. A simulated engine recognises."""

import asyncio
import io
from collections.abc import AsyncGenerator

import numpy as np
import pytest

from serve_app.errors import EngineError
from serve_app.events import Hypothesis, SegmentFinal, SpeechStarted, UtteranceFinal
from serve_app.observe import catalogue
from serve_app.observe.job_meter import FileMeter, StreamMeter
from serve_app.pipeline import Commit
from serve_app.service import JobOptions
from serve_app.settings import WindowSettings
from serve_app.transcript import Segment, Token, Word
from serve_app.window import SAMPLE_RATE, Lane, Samples, Window
from testing import media
from testing.fake_service import FakeService
from testing.metrics import MemoryRecorder

FILE_S = 70


def noise(seconds: float) -> Samples:
    return (np.random.default_rng(0).normal(0, 0.1, round(seconds * SAMPLE_RATE)) * 32767).astype(np.int16)


async def transcribe(server: FakeService, data: bytes) -> None:
    service = server.service
    recording = service.decoders.open(io.BytesIO(data))
    await service.transcribe_file(recording, service.find_model(None), JobOptions(windows=WindowSettings(window_s=32)))


async def test_a_file(server: FakeService) -> None:
    await transcribe(server, media.wav(noise(FILE_S)))
    metrics, windows = server.metrics, [window for window in server.windows if not window.is_retry]
    first, rest = ("first", "rest", "interactive"), ("first", "rest", "bulk")
    first_s = len(windows[0].samples) / SAMPLE_RATE
    for metric in (catalogue.AUDIO_SECONDS_RECEIVED, catalogue.AUDIO_SECONDS_TRANSCRIBED):
        assert metrics.labels(metric) == {first, rest}
        assert metrics.total(metric, *first) == pytest.approx(first_s)
        assert metrics.total(metric, *first) + metrics.total(metric, *rest) == pytest.approx(FILE_S)
    decoded_s = sum(metrics.total(catalogue.AUDIO_SECONDS_DECODED, *labels) for labels in (first, rest))
    assert decoded_s == pytest.approx(sum(len(window.samples) for window in server.windows) / SAMPLE_RATE)
    assert metrics.total(catalogue.GAPS_REDECODED, "first") == sum(window.is_retry for window in server.windows)
    assert len(metrics.values(catalogue.REQUEST_RTF, "first", "rest")) == 1
    assert len(metrics.values(catalogue.FIRST_TEXT_LATENCY_SECONDS, "first", "rest")) == 1


async def test_a_file_that_fails_is_received_and_not_transcribed(server: FakeService) -> None:
    server.failure = EngineError("it is broken")
    with pytest.raises(EngineError):
        await transcribe(server, media.wav(noise(FILE_S)))
    assert server.metrics.labels(catalogue.AUDIO_SECONDS_RECEIVED)
    for metric in (catalogue.AUDIO_SECONDS_DECODED, catalogue.AUDIO_SECONDS_TRANSCRIBED, catalogue.REQUEST_RTF):
        assert server.metrics.labels(metric) == set()


async def test_a_live_stream(server: FakeService) -> None:
    async def audio() -> AsyncGenerator[Samples | Commit, None]:
        speech = noise(6)
        for start in range(0, len(speech), 1_600):
            yield speech[start : start + 1_600]
            await asyncio.sleep(0)

    service = server.service
    flow = service.transcribe_stream(audio(), service.find_model(None), JobOptions(entry_point="realtime"))
    events = [event async for event in flow]
    metrics, labels = server.metrics, ("first", "realtime", "live")
    assert metrics.total(catalogue.AUDIO_SECONDS_RECEIVED, *labels) == pytest.approx(6)
    assert metrics.total(catalogue.AUDIO_SECONDS_TRANSCRIBED, *labels) == pytest.approx(6)
    decoded_s = sum(len(window.samples) for window in server.windows) / SAMPLE_RATE
    assert metrics.total(catalogue.AUDIO_SECONDS_DECODED, *labels) == pytest.approx(decoded_s)
    segments = sum(isinstance(event, SegmentFinal) for event in events)
    assert segments > 0
    assert len(metrics.values(catalogue.LIVE_FINAL_LAG_SECONDS, "first", "realtime")) == segments
    assert len(metrics.values(catalogue.FIRST_TEXT_LATENCY_SECONDS, "first", "realtime")) == 1


def segment(start_s: float, end_s: float) -> Segment:
    return Segment(0, "one", start_s, end_s, (), (Token("▁one", 1, 0, 1280, 0.9),))


def test_delays_of_a_stream_are_audio_that_came_meanwhile() -> None:
    metrics = MemoryRecorder()
    meter = StreamMeter(metrics, "m", "websocket")
    word = Word("one", 1.0, 1.5, 0.9)
    meter.take(SpeechStarted(1.0), 1.2)
    meter.take(Hypothesis((), ()), 1.4)
    meter.take(Hypothesis((), (word,)), 1.8)
    meter.take(Hypothesis((word,), ()), 2.2)
    meter.take(SegmentFinal(segment(1.0, 1.5)), 4.0)
    meter.take(UtteranceFinal(2.5), 4.0)
    assert metrics.values(catalogue.FIRST_TEXT_LATENCY_SECONDS, "m", "websocket") == [pytest.approx(0.8)]
    assert metrics.values(catalogue.LIVE_FINAL_LAG_SECONDS, "m", "websocket") == [pytest.approx(2.5)]
    assert metrics.total(catalogue.AUDIO_SECONDS_RECEIVED, "m", "websocket", "live") == pytest.approx(4.0)
    assert metrics.total(catalogue.AUDIO_SECONDS_TRANSCRIBED, "m", "websocket", "live") == pytest.approx(2.5)


def test_audio_counts_once_however_windows_overlap() -> None:
    metrics = MemoryRecorder()
    meter = FileMeter(metrics, "m", "rest")
    meter.received(32.0, Lane.INTERACTIVE)
    meter.received(20.0, Lane.INTERACTIVE)
    meter.received(60.0, Lane.BULK)
    assert metrics.total(catalogue.AUDIO_SECONDS_RECEIVED, "m", "rest", "interactive") == 32
    assert metrics.total(catalogue.AUDIO_SECONDS_RECEIVED, "m", "rest", "bulk") == 28
    retry = Window(0, 0, noise(3), is_retry=True)
    meter.decoded(retry, Lane.INTERACTIVE)
    assert metrics.total(catalogue.GAPS_REDECODED, "m") == 1
