"""Spans: of requests, of jobs by way of the service, and of windows in a replica."""

import asyncio
import io
import threading
import time
from collections.abc import AsyncGenerator, Iterator, Sequence
from typing import Any

import numpy as np
import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SpanExportResult
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode
from pydantic import ValidationError

from serve_app.diarizing import SpeakerOptions
from serve_app.errors import EngineBroken, EngineError
from serve_app.observe import job_trace, otel_tracer, tracers, tracing, window_trace
from serve_app.observe.otel_tracer import OtelTracer
from serve_app.observe.tracing import Span
from serve_app.observe.window_trace import WindowTrace
from serve_app.pipeline import Commit
from serve_app.request_settings import TracingSettings
from serve_app.service import JobOptions
from serve_app.settings import DiarizerSettings, WindowSettings
from serve_app.window import SAMPLE_RATE, Job, Lane, Samples, Window
from testing import media
from testing.fake_service import FakeService
from testing.traces import CLIENT_SPAN, TRACE_ID, TRACEPARENT, MemoryTracer, attributes, is_within

SECOND = np.full(SAMPLE_RATE, 1000, np.int16)


@pytest.fixture
def tracer() -> MemoryTracer:
    return MemoryTracer()


@pytest.fixture
def request_span(tracer: MemoryTracer) -> Iterator[Span]:
    """Of the current request."""
    span = tracer.request("POST /x", {"traceparent": TRACEPARENT}, {})
    assert span is not None
    tracing.current.set(span)
    yield span
    tracing.current.set(None)


class TestRequests:
    def test_it_continues_the_trace_of_its_client(self, tracer: MemoryTracer, request_span: Span) -> None:
        request_span.end()
        (span,) = tracer.spans()
        assert span.parent is not None
        assert (f"{span.context.trace_id:032x}", f"{span.parent.span_id:016x}") == (TRACE_ID, CLIENT_SPAN)
        assert request_span.context == f"00-{TRACE_ID}-{span.context.span_id:016x}-01"

    @pytest.mark.parametrize("header", ["", "nonsense", f"00-{'0' * 32}-{CLIENT_SPAN}-01"])
    def test_without_a_valid_trace_it_begins_one(self, tracer: MemoryTracer, header: str) -> None:
        span = tracer.request("GET /x", {"traceparent": header} if header else {}, {})
        assert span is not None
        span.end()
        assert tracer.spans()[0].parent is None

    @pytest.mark.parametrize(
        ("ratio", "traceparent", "is_traced"),
        [(0.0, "", False), (0.0, TRACEPARENT, True), (1.0, TRACEPARENT[:-1] + "0", False)],
        ids=["none is", "one that its client traces", "one that its client does not trace"],
    )
    def test_which_are_traced(self, ratio: float, traceparent: str, is_traced: bool) -> None:
        headers = {"traceparent": traceparent} if traceparent else {}
        assert (MemoryTracer(sample_ratio=ratio).request("GET /x", headers, {}) is not None) == is_traced


async def transcribe(server: FakeService, seconds: int = 70, speakers: SpeakerOptions | None = None) -> None:
    samples = (np.random.default_rng(0).normal(0, 0.1, seconds * SAMPLE_RATE) * 32767).astype(np.int16)
    recording = server.service.decoders.open(io.BytesIO(media.wav(samples)))
    await server.service.transcribe_file(
        recording, server.service.find_model(None), JobOptions(windows=WindowSettings(window_s=32), speakers=speakers)
    )


class TestFiles:
    async def test_stages(self, server: FakeService, tracer: MemoryTracer, request_span: Span) -> None:
        await transcribe(server)
        request_span.end()
        spans = tracer.spans()
        request, windows = tracer.only("POST /x"), [span for span in spans if span.name == "window"]
        assert sorted({span.name for span in spans}) == ["POST /x", "decode", "merge", "window"]
        assert all(is_within(span, request) for span in spans if span is not request)
        assert attributes(request) == {"model": "first", "entry_point": "rest", "audio_s": 70.0, "windows": len(windows)}
        assert attributes(tracer.only("decode")) == {"audio_s": 70.0, "windows": len(windows)}
        assert [attributes(span)["lane"] for span in windows] == ["interactive"] + ["bulk"] * (len(windows) - 1)
        assert [attributes(span)["index"] for span in windows] == list(range(len(windows)))
        assert (tracer.only("merge").start_time or 0) >= max(span.end_time or 0 for span in windows)
        contexts = {f"00-{TRACE_ID}-{span.context.span_id:016x}-01" for span in windows}
        assert {job.trace for job in server.jobs} == contexts

    async def test_the_steps_of_a_diarizer(
        self, tracer: MemoryTracer, request_span: Span, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        server = FakeService(diarizers=(DiarizerSettings(name="speakers", source="simulated"),))
        await transcribe(server, 12, SpeakerOptions("speakers"))
        chunks = [chunk.new_samples / SAMPLE_RATE for chunk in server.diarizer.chunks]
        steps = [span for span in tracer.spans() if span.name == "diarize"]
        assert [attributes(step) for step in steps] == [{"index": n, "audio_s": length} for n, length in enumerate(chunks)]
        monkeypatch.setattr(job_trace, "MAX_WINDOWS", 1)
        await transcribe(server, 12, SpeakerOptions("speakers"))
        assert tracer.names().count("diarize") == len(steps) + 1
        request_span.end()
        assert all(is_within(step, tracer.only("POST /x")) for step in steps)

    def test_a_retry(self, tracer: MemoryTracer, request_span: Span) -> None:
        with job_trace.JobTrace(request_span).recognising(Window(3, 0, SECOND, is_retry=True), Lane.INTERACTIVE):
            pass
        assert attributes(tracer.only("retry"))["index"] == 3

    async def test_without_a_trace_windows_carry_none(self, server: FakeService) -> None:
        await transcribe(server)
        assert {job.trace for job in server.jobs} == {""}
        assert len({id(job) for job in server.jobs}) == 1

    async def test_a_failure(self, server: FakeService, tracer: MemoryTracer, request_span: Span) -> None:
        server.failure = EngineError("the GPU failed")
        with pytest.raises(EngineError):
            await transcribe(server, 3)
        window = tracer.only("window")
        assert (window.status.status_code, window.status.description) == (StatusCode.ERROR, "EngineError: the GPU failed")
        assert "merge" not in tracer.names()

    async def test_what_is_given_up_has_not_failed(self, server: FakeService, tracer: MemoryTracer, request_span: Span) -> None:
        server.hold.clear()
        work = asyncio.create_task(transcribe(server, 200))
        while not server.windows:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        work.cancel()
        await asyncio.wait([work])
        given_up = [span for span in tracer.spans() if span.name in ("window", "decode")]
        assert {span.name for span in given_up} == {"window", "decode"}
        assert all(attributes(span)["cancelled"] and span.status.is_unset for span in given_up)

    async def test_the_spans_of_a_job_are_bounded(
        self, server: FakeService, tracer: MemoryTracer, request_span: Span, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(job_trace, "MAX_WINDOWS", 1)
        await transcribe(server)
        request_span.end()
        assert tracer.names().count("window") == 1
        assert [bool(job.trace) for job in server.jobs] == [True] + [False] * (len(server.jobs) - 1)
        assert attributes(tracer.only("POST /x"))["windows"] == len(server.jobs)


async def test_a_live_stream(server: FakeService, tracer: MemoryTracer, request_span: Span) -> None:
    async def audio() -> AsyncGenerator[Samples | Commit, None]:
        for _ in range(4):
            yield SECOND

    stream = server.service.transcribe_stream(audio(), server.service.find_model(None), JobOptions(entry_point="realtime"))
    assert [event async for event in stream]
    span, windows = tracer.only("stream"), [span for span in tracer.spans() if span.name == "window"]
    assert attributes(span)["entry_point"] == "realtime"
    assert len(windows) == len(server.jobs) == attributes(span)["windows"]
    assert all(is_within(window, span) for window in windows)


class TestWindowsInAReplica:
    def test_a_window_waits_and_is_decoded(self, tracer: MemoryTracer, request_span: Span) -> None:
        with window_trace.traced(tracer, Job("a", trace=request_span.context)) as trace:
            window_trace.begin_batch([None, trace], [SECOND, SECOND[:4000]])
        request_span.end()
        request, queue, step = tracer.spans()
        assert (queue.name, step.name) == ("queue", "step")
        assert is_within(queue, request)
        assert is_within(step, request)
        assert queue.end_time == step.start_time
        assert attributes(step) == {"batch.windows": 2, "batch.audio_s": 1.25, "batch.padded_audio_s": 2.0}

    def test_a_step_lasts_until_the_window_is_done(self, tracer: MemoryTracer) -> None:
        """A batch that failed is decoded window by window."""
        trace = WindowTrace(tracer, TRACEPARENT)
        trace.begin(began_ns := time.time_ns(), {"batch.windows": 2})
        trace.begin(began_ns + 1, {"batch.windows": 1})
        with pytest.raises(EngineBroken), trace:
            raise EngineBroken("it hangs")
        queue, step = tracer.spans()
        assert queue.end_time == step.start_time == began_ns
        assert attributes(step) == {"batch.windows": 1}
        assert (queue.status.is_unset, step.status.description) == (True, "EngineBroken: it hangs")

    def test_a_window_that_leaves_the_queue(self, tracer: MemoryTracer) -> None:
        with pytest.raises(asyncio.CancelledError), WindowTrace(tracer, TRACEPARENT):
            raise asyncio.CancelledError
        assert tracer.names() == ["queue"]

    def test_no_trace(self, tracer: MemoryTracer) -> None:
        for each in (window_trace.traced(tracer, Job("a")), window_trace.traced(None, Job("a", trace=TRACEPARENT))):
            assert each is window_trace.UNTRACED
        window_trace.begin_batch([None, None], [SECOND, SECOND])


def test_the_end_of_a_process_does_not_wait_for_a_collector(monkeypatch: pytest.MonkeyPatch) -> None:
    is_over = threading.Event()

    class Silent(InMemorySpanExporter):
        def export(self, spans: Sequence[ReadableSpan]) -> SpanExportResult:
            is_over.wait()
            return SpanExportResult.SUCCESS

    monkeypatch.setattr(otel_tracer, "CLOSE_S", 0.01)
    tracer = OtelTracer(TracingSettings(), "ingress", "a", Silent())
    tracer.record(TRACEPARENT, "step", 0, 1, {})
    tracer.close()
    is_over.set()


class TestSettings:
    def test_by_default_there_is_no_tracer(self) -> None:
        assert tracers.open_tracer(TracingSettings(), "ingress", "a") is None

    def test_with_an_endpoint_there_is_one(self) -> None:
        assert isinstance(tracers.open_tracer(TracingSettings(endpoint="http://127.0.0.1:1/"), "ingress", "a"), OtelTracer)

    def test_without_the_exporter_it_says_what_to_install(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def missing(name: str) -> None:
            raise ModuleNotFoundError(name)

        for find_spec in (missing, lambda name: None):
            monkeypatch.setattr(tracers, "find_spec", find_spec)
            tracers.check(TracingSettings())
            with pytest.raises(ValueError, match=r"pip install 'parakeet-ray-serve\[tracing\]'"):
                tracers.check(TracingSettings(endpoint="http://collector:4318"))

    @pytest.mark.parametrize("settings", [{"endpoint": "collector:4318"}, {"sample_ratio": 2}])
    def test_wrong_ones_are_refused(self, settings: dict[str, Any]) -> None:
        with pytest.raises(ValidationError):
            TracingSettings(**settings)
