"""Metrics of jobs, by way of the service. A simulated engine recognises."""

import asyncio
import io
from collections.abc import AsyncGenerator
from functools import partial

import numpy as np
import pytest

from serve_app.errors import EngineError
from serve_app.events import Hypothesis, LiveEvent, SegmentFinal, SpeechStarted, UtteranceFinal
from serve_app.live.endpointing import VadEvent
from serve_app.observe import catalogue
from serve_app.observe.catalogue import Metric
from serve_app.observe.job_meter import MAX_ARRIVALS, FileMeter, StreamMeter
from serve_app.pipeline import Commit
from serve_app.service import JobOptions
from serve_app.settings import WindowSettings
from serve_app.transcript import Segment, Token, Word
from serve_app.window import SAMPLE_RATE, Lane, Samples, Window
from testing import media, virtual_time
from testing.fake_service import FakeService, LevelVad
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


WORD = Word("one", 1.0, 1.5, 0.9)


class Stream:
    """A meter, and a clock that tests set."""

    def __init__(self) -> None:
        self.clock_s = 0.0
        self.metrics = MemoryRecorder()
        self.meter = StreamMeter(self.metrics, "m", "websocket", lambda: self.clock_s)

    def receive(self, seconds: float, at_s: float) -> None:
        self.clock_s = at_s
        self.meter.arrived(seconds)

    def take(self, event: LiveEvent, at_s: float) -> None:
        self.clock_s = at_s
        self.meter.take(event)

    def values(self, metric: Metric) -> list[float]:
        return self.metrics.values(metric, "m", "websocket")


def test_delays_of_a_stream_are_time_since_its_audio_arrived() -> None:
    stream = Stream()
    for number in range(8):
        stream.receive(0.5, at_s=10 + 0.5 * number)  # until 4 s of audio, at 13.5 s
    stream.take(SpeechStarted(1.2), 14)
    stream.take(Hypothesis((), ()), 14.5)
    stream.take(Hypothesis((), (WORD,)), 15)
    stream.take(Hypothesis((WORD,), ()), 15.5)
    stream.take(SegmentFinal(segment(1.2, 2.0)), 17)
    stream.take(UtteranceFinal(2.5), 17)
    assert stream.values(catalogue.FIRST_TEXT_LATENCY_SECONDS) == [pytest.approx(15 - 11)]
    assert stream.values(catalogue.LIVE_FINAL_LAG_SECONDS) == [pytest.approx(17 - 11.5)]
    assert stream.metrics.total(catalogue.AUDIO_SECONDS_RECEIVED, "m", "websocket", "live") == pytest.approx(4.0)
    assert stream.metrics.total(catalogue.AUDIO_SECONDS_TRANSCRIBED, "m", "websocket", "live") == pytest.approx(2.5)


def test_arrivals_of_a_long_stream_are_bounded() -> None:
    stream = Stream()
    for number in range(50 * 3600):
        stream.receive(0.02, at_s=0.02 * number)
    assert len(stream.meter._arrivals) <= MAX_ARRIVALS
    stream.take(SegmentFinal(segment(3550.0, 3580.0)), 3603.0)
    stream.take(SegmentFinal(segment(10.0, 20.0)), 3603.0)
    recent, old = stream.values(catalogue.LIVE_FINAL_LAG_SECONDS)
    assert recent == pytest.approx(3603 - 3580, abs=0.2)
    assert old > 100


@pytest.mark.parametrize(("vad_s", "min_share"), [(0.01, 0.85), (0.5, 0.85), (4.0, 0.3)])
def test_delays_of_a_stream_include_those_of_the_ingress(vad_s: float, min_share: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """The VAD takes so long for each call. While more than a second waits for it, no audio is read, and that is not seen."""

    class SlowVad(LevelVad):
        async def push(self, block: Samples) -> list[VadEvent]:
            await asyncio.sleep(vad_s)
            return await super().push(block)

    server, lags_s = FakeService(), list[float]()
    monkeypatch.setattr("serve_app.service.StreamMeter", partial(StreamMeter, now_s=virtual_time.now_s))
    monkeypatch.setattr(server.service, "_new_detector", SlowVad)

    async def audio() -> AsyncGenerator[Samples | Commit, None]:
        speech = np.concatenate([np.zeros(2 * SAMPLE_RATE, np.int16), noise(4), np.zeros(14 * SAMPLE_RATE, np.int16)])
        for start in range(0, len(speech), 1_600):
            await asyncio.sleep((start + 1_600) / SAMPLE_RATE - virtual_time.now_s())
            yield speech[start : start + 1_600]

    async def listen() -> None:
        options = JobOptions(entry_point="websocket")
        async for event in server.service.transcribe_stream(audio(), server.service.find_model(None), options):
            if isinstance(event, SegmentFinal):
                lags_s.append(virtual_time.now_s() - event.segment.end_s)

    virtual_time.run(listen())
    measured_s = server.metrics.values(catalogue.LIVE_FINAL_LAG_SECONDS, "first", "websocket")
    assert len(measured_s) == len(lags_s) > 0
    assert all(min_share * lag_s < measured <= lag_s for measured, lag_s in zip(measured_s, lags_s, strict=True))


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
