"""A trace of the running server as a collector gets it, lines of its log, and clients that leave."""

import functools
import json
import socket
import time
from collections.abc import Callable
from typing import Any

import pytest
import websockets.sync.client

from serve_app.api.websocket import PATH
from serve_app.window import Samples
from testing import media
from testing.server import Server
from testing.trace_collector import CollectedSpan, TraceCollector
from testing.traces import CLIENT_SPAN, TRACE_ID, TRACEPARENT
from tests.server.demo.test_reverse_proxies import until

pytestmark = [pytest.mark.serve]

ROUTE = "/v1/audio/transcriptions"
STAGES = ("upload", "decode", "merge", "render")
WITHIN_S = 30.0


def lines(server: Server, request_id: str) -> list[dict[str, Any]]:
    """The lines of the log that belong to a request."""
    # Ray, which passes lines on, may cut one in two where it reads it while it is written.
    objects = [json.loads(line) for line in server.log.splitlines() if line.startswith("{") and line.endswith("}")]
    return [each for each in objects if each.get("request_id") == request_id]


def wait_for_lines(server: Server, request_id: str, text: str) -> list[dict[str, Any]]:
    """The same, once one of them has that text; Ray passes lines on with a delay."""
    until = time.monotonic() + WITHIN_S
    while True:
        found = lines(server, request_id)
        if any(text in each["message"] for each in found):
            return found
        assert time.monotonic() < until, found
        time.sleep(0.1)


def test_a_file_is_one_trace(server: Server, collector: TraceCollector, speech: Samples) -> None:
    headers = {"x-request-id": "a-traced-request", "traceparent": TRACEPARENT}
    audio = media.wav(speech)
    answer = server.client.post(ROUTE, files={"file": ("audio.wav", audio)}, headers=headers)
    assert answer.status_code == 200
    names = ("upload", "decode", "window", "queue", "step", "merge", "render", f"POST {ROUTE}")
    spans = collector.trace(TRACE_ID, *names)
    by_id = {span.span_id: span for span in spans}
    (request,) = [span for span in spans if span.parent_id == CLIENT_SPAN]
    assert request.name == f"POST {ROUTE}"
    assert request.attributes["request.id"] == "a-traced-request"
    assert request.attributes["http.response.status_code"] == 200
    assert request.attributes["model"] == "digits"

    def parents(name: str) -> set[str]:
        return {by_id[span.parent_id].name for span in spans if span.name == name}

    assert {name: parents(name) for name in names if name != request.name} == {
        **{name: {request.name} for name in ("upload", "decode", "window", "merge", "render")},
        **{name: {"window"} for name in ("queue", "step")},
    }
    for span in spans:
        if span is not request:
            assert is_within(span, by_id[span.parent_id])
        assert not span.error
        assert span.deployment == ("model digits" if span.name in ("queue", "step") else "ingress")
    upload, decode, merge, render = (next(span for span in spans if span.name == name) for name in STAGES)
    assert upload.end_ns <= decode.start_ns
    assert merge.end_ns <= render.start_ns
    assert upload.attributes["bytes"] > len(audio)
    assert collector.headers[0]["x-key"] == "of-the-collector"
    (access,) = wait_for_lines(server, "a-traced-request", f"POST {ROUTE} 200")
    assert (access["levelname"], access["deployment"]) == ("INFO", "parakeet_ingress")
    assert {"asctime", "replica", "application"} <= set(access)


def is_within(inner: CollectedSpan, outer: CollectedSpan) -> bool:
    return outer.start_ns <= inner.start_ns <= inner.end_ns <= outer.end_ns


def test_live_speech_is_one_trace(server: Server, collector: TraceCollector, speech: Samples) -> None:
    trace_id = TRACE_ID[::-1]
    headers = {"traceparent": TRACEPARENT.replace(TRACE_ID, trace_id)}
    with websockets.sync.client.connect(url(server), additional_headers=headers) as connection:
        assert connection.response is not None
        request_id = connection.response.headers["x-request-id"]
        connection.send('{"encoding": "pcm_s16le"}')
        connection.send(speech.tobytes())
        connection.send("END")
        assert json.loads([*connection][-1])["type"] == "final_transcription"
    until = time.monotonic() + WITHIN_S
    while True:
        spans = collector.trace(trace_id, "stream", "window", "queue", "step", f"WEBSOCKET {PATH}")
        windows = {span.span_id for span in spans if span.name == "window"}
        if {span.parent_id for span in spans if span.name == "step"} == windows:
            break
        # The last spans of the replica may follow those of the ingress.
        assert time.monotonic() < until, spans
        time.sleep(0.1)
    (request,) = [span for span in spans if span.name == f"WEBSOCKET {PATH}"]
    assert request.attributes["request.id"] == request_id
    assert all(span.attributes["lane"] == "live" for span in spans if span.name == "window")


def test_others_are_not_traced(server: Server, collector: TraceCollector, speech: Samples) -> None:
    """The settings of this server trace none by themselves."""
    assert server.transcribe(media.wav(speech)).status_code == 200
    assert {span.trace_id for span in collector.spans} <= {TRACE_ID, TRACE_ID[::-1]}


def url(server: Server) -> str:
    return server.url.replace("http", "ws") + PATH


def leave_upload(server: Server, request_id: str) -> None:
    request = upload(server, request_id)
    with connected(server) as connection:
        connection.sendall(request[: len(request) // 2])
        wait_for_upload(server)


def leave_waiting(server: Server, request_id: str) -> None:
    with connected(server) as connection:
        connection.sendall(upload(server, request_id))
        time.sleep(0.2)


def leave_events(server: Server, request_id: str) -> None:
    with connected(server) as connection:
        connection.sendall(upload(server, request_id, stream="true", **{"include[]": "progress"}))
        assert connection.recv(100)


def leave_file(server: Server, request_id: str) -> None:
    with websockets.sync.client.connect(url(server), additional_headers={"x-request-id": request_id}) as connection:
        connection.send(long_audio()[:4_000_000])
        connection.socket.shutdown(socket.SHUT_RDWR)


def leave_speech(server: Server, request_id: str) -> None:
    with websockets.sync.client.connect(url(server), additional_headers={"x-request-id": request_id}) as connection:
        connection.send('{"encoding": "pcm_s16le", "interim_results": true}')
        connection.send(long_audio()[44:2_000_000])
        connection.socket.shutdown(socket.SHUT_RDWR)


@functools.cache
def long_audio() -> bytes:
    """A WAV file whose transcription takes a second or more."""
    return media.wav(media.tone(900))


def upload(server: Server, request_id: str, **fields: str) -> bytes:
    """A request as it goes over the wire."""
    request = server.client.build_request("POST", ROUTE, files={"file": ("audio.wav", long_audio())}, data=fields)
    headers = "".join(f"{name}: {value}\r\n" for name, value in [*request.headers.items(), ("x-request-id", request_id)])
    return f"POST {ROUTE} HTTP/1.1\r\n{headers}\r\n".encode() + request.read()


def wait_for_upload(server: Server) -> None:
    """Until then the request may end before the server's own code sees it."""
    (ingress,) = server.processes("ingress")
    until(lambda: bool(server.uploads(ingress)), "no upload has begun")


def connected(server: Server) -> socket.socket:
    return socket.create_connection(("127.0.0.1", server.client.base_url.port or 80))


@pytest.mark.parametrize("leave", [leave_upload, leave_waiting, leave_events, leave_file, leave_speech])
def test_a_client_that_leaves_is_a_line(server: Server, leave: Callable[[Server, str], None]) -> None:
    log_before, request_id = len(server.log), f"of-{leave.__name__}"
    leave(server, request_id)
    found = wait_for_lines(server, request_id, "the client left")
    assert len([line for line in found if "the client left" in line["message"]]) == 1
    of_serve = "Failed to get queue length"  # Its router's, on a busy machine.
    assert not [
        line
        for line in found
        if (line["levelname"] not in ("INFO", "DEBUG") and of_serve not in line["message"]) or "exc_text" in line
    ]
    assert "Traceback" not in server.log[log_before:]
