"""The patch of Serve's proxies, on a server that Serve's own function starts, with a small application behind it."""

import asyncio
import importlib
import json
import subprocess
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx2
import pytest
import websockets
from ray import cloudpickle
from ray.serve._private import http_util as _http_util
from ray.serve._private import proxy as _proxy
from ray.serve.config import HTTPOptions
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.api.errors import error_response
from serve_app.cluster import proxy_patch
from serve_app.cluster.backpressure import MAX_HELD_BYTES
from serve_app.cluster.proxy_patch import MAX_HEAD_BYTES, MAX_ID_CHARS, STEERING_HEADERS
from serve_app.errors import IngressLost, Unserved
from testing.server import free_port

proxy: Any = _proxy
http_util: Any = _http_util

UPGRADE = ["Connection: Upgrade, HTTP2-Settings", "Upgrade: h2c", "HTTP2-Settings: AAEAAEAAAAIAAAABAAMAAABkAAQBAAAAAAUAAEAA"]
"""What JDK 17's HttpClient and `curl --http2` send."""


async def echo(scope: Scope, receive: Receive, send: Send) -> None:
    """Answers with what it was asked."""
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    headers = [[name.decode("latin-1"), value.decode("latin-1")] for name, value in scope["headers"]]
    told = json.dumps({"method": scope["method"], "path": scope["path"], "headers": headers, "body": body.decode()}).encode()
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(told))]})
    await send({"type": "http.response.body", "body": told})


Start = Callable[..., Awaitable[int]]


@pytest.fixture
async def start(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Start]:
    """Starts a patched proxy in front of an application; returns its port."""
    monkeypatch.setattr(proxy, "MessageQueue", proxy.MessageQueue)
    running = []

    async def start(app: ASGIApp, endpoints: Sequence[str] = ("application",)) -> int:
        port = free_port()
        loop = asyncio.get_running_loop()
        started = loop.create_task(
            http_util.start_asgi_http_server(
                app, http_util.configure_http_options_with_defaults(HTTPOptions(host="127.0.0.1", port=port)), event_loop=loop
            )
        )
        running.append(await started)
        while not running[-1][1].started:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        # Twice, as every ingress does it.
        for _ in range(2):
            actor = SimpleNamespace(
                _start_http_server_task=started,
                proxy_router=SimpleNamespace(endpoints=endpoints),
                http_proxy=SimpleNamespace(asgi_receive_queues={}),
            )
            responses = error_response(IngressLost()), error_response(Unserved())
            proxy_patch.patch(actor, MAX_HELD_BYTES, *responses)
        return port

    yield start
    for task, server in running:
        server.should_exit = True
        server.config.loaded_app.messages.close()
        await task


async def exchange(port: int, *pieces: bytes) -> bytes:
    """What the server answers until it closes the connection."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for piece in pieces:
        writer.write(piece)
        await writer.drain()
        await asyncio.sleep(0)
    answer = await reader.read()
    writer.close()
    return answer


def head(method: str, *headers: str) -> bytes:
    return "\r\n".join([f"{method} /path?query=1 HTTP/1.1", "Host: x", *headers, "", ""]).encode()


def asked(answer: bytes) -> dict[str, Any]:
    """What `echo` was asked."""
    status, _, rest = answer.partition(b"\r\n")
    assert status == b"HTTP/1.1 200 OK"
    told: dict[str, Any] = json.loads(rest.partition(b"\r\n\r\n")[2])
    return told


class TestUpgrades:
    @pytest.mark.parametrize("piece_bytes", [1, 7, 10_000])
    @pytest.mark.parametrize("is_chunked", [False, True])
    async def test_an_offer_of_http2_keeps_its_body(self, start: Start, piece_bytes: int, is_chunked: bool) -> None:
        body = b"5\r\nhello\r\n6\r\n world\r\n0\r\n\r\n" if is_chunked else b"hello world"
        length = "Transfer-Encoding: chunked" if is_chunked else "Content-Length: 11"
        request = head("POST", length, *UPGRADE) + body + head("GET", "Connection: close")
        pieces = [request[at : at + piece_bytes] for at in range(0, len(request), piece_bytes)]
        answers = (await exchange(await start(echo), *pieces)).partition(b'"body": "hello world"}')
        assert asked(answers[0] + answers[1])["path"] == "/path"
        assert asked(answers[2])["method"] == "GET"

    @pytest.mark.parametrize("offer", [UPGRADE, ["Connection: upgrade", "Upgrade: TLS/1.0"], ["Upgrade: h2c"]])
    @pytest.mark.parametrize("method", ["GET", "POST"])
    async def test_any_offer_is_ignored(self, start: Start, method: str, offer: list[str]) -> None:
        body = b"hello" if method == "POST" else b""
        request = head(method, f"Content-Length: {len(body)}", *offer) + body + head("GET", "Connection: close")
        first, _, second = (await exchange(await start(echo), request)).partition(b"}HTTP")
        assert (asked(first + b"}")["method"], asked(first + b"}")["body"]) == (method, body.decode())
        assert asked(b"HTTP" + second)["method"] == "GET"

    async def test_a_websocket_is_no_offer(self, start: Start) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "websocket.accept"})
            await receive()
            await send({"type": "websocket.send", "text": (await receive())["text"]})
            await send({"type": "websocket.close"})

        async with websockets.connect(f"ws://127.0.0.1:{await start(app)}") as socket:
            await socket.send("hello")
            assert await socket.recv() == "hello"

    async def test_connect_is_refused(self, start: Start) -> None:
        request = b"CONNECT x:1 HTTP/1.1\r\nHost: x\r\n" + b"\r\n".join(line.encode() for line in UPGRADE) + b"\r\n\r\n"
        assert (await exchange(await start(echo), request)).startswith(b"HTTP/1.1 400")


class TestHeads:
    @pytest.mark.parametrize(
        "request_start",
        [
            b"GET /" + b"x" * 64,
            b"GET / HTTP/1.1\r\nx: " + b"x" * 64,
            b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 64,
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n" + b"x: y\r\n" * 64,
            b"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n1;" + b"x" * 64,
        ],
        ids=["path", "value", "headers", "trailers", "extension"],
    )
    async def test_an_endless_head_is_refused(self, start: Start, request_start: bytes) -> None:
        port = await start(echo)
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request_start)
        sent_bytes = 0
        reading = asyncio.create_task(reader.read())
        while not reading.done() and sent_bytes < 8 * MAX_HEAD_BYTES:
            writer.write(request_start[-6:] * 1000)
            sent_bytes += 6000
            await asyncio.sleep(0.001)
        assert b"HTTP/1.1 400" in await reading
        writer.close()

    async def test_a_long_body_in_small_pieces_is_no_head(self, start: Start) -> None:
        body = [b"x" * 1000] * (2 * MAX_HEAD_BYTES // 1000)
        request = head("POST", f"Content-Length: {1000 * len(body)}", "Connection: close")
        assert len(asked(await exchange(await start(echo), request, *body))["body"]) == 1000 * len(body)


class TestHeaders:
    async def ids(self, start: Start, *headers: bytes) -> tuple[str, str]:
        """The request id that the application gets, and the one that is returned."""
        request = b"\r\n".join([b"GET / HTTP/1.1", b"Host: x", b"Connection: close", *headers, b"", b""])
        answer = await exchange(await start(echo), request)
        (got,) = [value for name, value in asked(answer)["headers"] if name == "x-request-id"]
        (line,) = [line for line in answer.split(b"\r\n") if line.lower().startswith(b"x-request-id:")]
        return got, line.partition(b": ")[2].decode()

    @pytest.mark.parametrize("wanted", ["a", "0f3c-9", "x" * MAX_ID_CHARS, "two words"])
    async def test_a_request_id_is_returned(self, start: Start, wanted: str) -> None:
        assert await self.ids(start, b"x-request-id: " + wanted.encode()) == (wanted, wanted)

    @pytest.mark.parametrize("wanted", [b"\xe4\xff\x80", "ä".encode(), b"", b"x" * (MAX_ID_CHARS + 1), b"a\tb", b"x" * 50_000])
    async def test_one_that_cannot_be_logged_is_replaced(self, start: Start, wanted: bytes) -> None:
        got, returned = await self.ids(start, b"X-Request-ID: " + wanted)
        assert got == returned
        assert got.isascii()
        assert 10 < len(got) <= MAX_ID_CHARS

    @pytest.mark.parametrize("name", [*sorted(STEERING_HEADERS), b"Serve_Multiplexed_Model_Id", b"X_SESSION_ID"])
    async def test_a_client_does_not_steer_serve(self, start: Start, name: bytes) -> None:
        answer = await exchange(await start(echo), head("GET", "Connection: close", f"{name.decode()}: ?1", "other: kept"))
        names = {name for name, _ in asked(answer)["headers"]}
        assert name.decode().lower() not in names
        assert "other" in names


class TestALostIngress:
    async def test_a_request_without_an_answer_gets_the_error_object(self, start: Start) -> None:
        async def lost(scope: Scope, receive: Receive, send: Send) -> None:
            return

        async with httpx2.AsyncClient() as client:
            answer = await client.post(f"http://127.0.0.1:{await start(lost)}/", content=b"hello")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "5")
        assert answer.json()["error"]["code"] == "ingress_lost"

    @pytest.mark.parametrize("sent", [[], [{"type": "websocket.send", "text": "hello"}]])
    async def test_an_open_socket_gets_a_close_frame(self, start: Start, sent: list[Message]) -> None:
        async def lost(scope: Scope, receive: Receive, send: Send) -> None:
            for message in [{"type": "websocket.accept"}, *sent]:
                await send(message)

        async with websockets.connect(f"ws://127.0.0.1:{await start(lost)}") as socket:
            await socket.wait_closed()
            assert socket.close_code == 1012
            assert [await socket.recv() for _ in sent] == [message["text"] for message in sent]

    async def test_a_socket_that_is_not_open_yet_is_refused(self, start: Start) -> None:
        async def lost(scope: Scope, receive: Receive, send: Send) -> None:
            return

        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"ws://127.0.0.1:{await start(lost)}")
        assert refused.value.response.status_code == 503

    async def test_a_refusal_by_serve_itself_reaches_a_socket(self, start: Start) -> None:
        """Serve sends messages of HTTP, whatever the request."""

        async def refusing(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "http.response.start", "status": 404, "headers": []})
            await send({"type": "http.response.body", "body": b"no"})

        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"ws://127.0.0.1:{await start(refusing)}")
        assert refused.value.response.status_code == 404

    async def test_a_client_that_is_gone_aborts_nothing(self, start: Start) -> None:
        """An exception would abort Serve's generators, which log a traceback then."""
        ended: asyncio.Future[str] = asyncio.get_running_loop().create_future()

        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await send({"type": "websocket.accept"})
            try:
                while (await receive())["type"] != "websocket.disconnect":
                    pass
                await send({"type": "websocket.send", "text": "too late"})
            except BaseException as error:
                ended.set_result(repr(error))
                raise
            ended.set_result("")

        async with websockets.connect(f"ws://127.0.0.1:{await start(app)}") as socket:
            socket.transport.abort()
            assert await asyncio.wait_for(ended, 10) == ""


class TestNoApplication:
    """While the server starts, or after the application was removed."""

    async def test_requests_are_asked_to_come_later(self, start: Start) -> None:
        port = await start(echo, endpoints=())
        async with httpx2.AsyncClient() as client:
            answer = await client.post(f"http://127.0.0.1:{port}/v1/audio/transcriptions", content=b"hello")
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "10")
        assert answer.json()["error"]["code"] == "unserved"
        with pytest.raises(websockets.InvalidStatus) as refused:
            await websockets.connect(f"ws://127.0.0.1:{port}/v1/realtime")
        assert refused.value.response.status_code == 503

    async def test_serves_own_routes_are_answered(self, start: Start) -> None:
        port = await start(echo, endpoints=())
        async with httpx2.AsyncClient() as client:
            assert (await client.get(f"http://127.0.0.1:{port}/-/healthz")).status_code == 200


@pytest.mark.parametrize("key", ["body", "bytes", "text"])
async def test_the_proxy_stops_reading_until_the_replica_has_fetched(key: str) -> None:
    queue = proxy_patch.bounded_queue(MAX_HELD_BYTES)()
    piece = MAX_HELD_BYTES // 8 * (" " if key == "text" else b" ")
    for held in range(9):
        reading = asyncio.create_task(queue({"type": "message", key: piece}))
        await asyncio.sleep(0)
        assert reading.done() == (held < 8)
    assert len(queue.get_messages_nowait()) == 9
    await reading


def test_a_proxy_needs_none_of_our_modules(tmp_path: Path) -> None:
    importlib.import_module("serve_app.cluster.proxies")
    (tmp_path / "patch").write_bytes(cloudpickle.dumps(proxy_patch.patch))  # type: ignore[no-untyped-call]
    code = "import pickle, sys; print(pickle.load(open('patch', 'rb')).__name__, [m for m in sys.modules if 'serve_app' in m])"
    done = subprocess.run([sys.executable, "-I", "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "patch []\n", done.stderr
