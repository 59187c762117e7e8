"""The messages of requests on their way from a proxy to an ingress, in both event loops that Serve may run in."""

import asyncio
import errno
import itertools
import os
import pickle
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any, cast
from uuid import uuid4

import pytest
import uvloop
from ray.serve._private.http_util import MessageQueue
from starlette.types import Message

from serve_app.cluster.message_socket import MessageServer, Pull, connected, joined

TIMEOUT_S = 20


class Metadata:
    """Of a request of Serve's; only what is used of it."""

    def __init__(self) -> None:
        self.internal_request_id = str(uuid4())


Scenario = Callable[["Proxy"], Awaitable[None]]


class Proxy:
    """The queues of a proxy's requests, and an ingress that is connected to it."""

    def __init__(self) -> None:
        self.queues: dict[str, MessageQueue] = {}
        self.server = MessageServer(self.queues)

    @asynccontextmanager
    async def request(self) -> AsyncIterator[tuple[MessageQueue, Callable[[float], Awaitable[Any]]]]:
        """A request of its own: its queue, and a function that returns the messages of one pull."""
        metadata: Any = Metadata()
        queue = self.queues[metadata.internal_request_id] = MessageQueue()  # type: ignore[no-untyped-call]
        async with connected(self.server.address) as pull:
            assert pull is not None
            yield queue, pulling(pull, metadata)
        self.queues.pop(metadata.internal_request_id, None)
        queue.close()  # type: ignore[no-untyped-call]


def pulling(pull: Pull, metadata: Any) -> Callable[[float], Awaitable[Any]]:
    async def messages(interval_s: float = 0.0) -> Any:
        return pickle.loads(await pull(metadata, interval_s))

    return messages


@pytest.fixture(params=[asyncio.new_event_loop, uvloop.new_event_loop], ids=["asyncio", "uvloop"])
def run(request: pytest.FixtureRequest) -> Callable[[Scenario], None]:
    """Runs a scenario with a proxy that listens."""

    async def with_proxy(scenario: Scenario) -> None:
        proxy = Proxy()
        await proxy.server.start()
        try:
            async with asyncio.timeout(TIMEOUT_S):
                await scenario(proxy)
        finally:
            proxy.server.close()
        # What it still serves ends by itself.
        while others := asyncio.all_tasks() - {asyncio.current_task()}:
            await asyncio.wait(others)

    def run(scenario: Scenario) -> None:
        with asyncio.Runner(loop_factory=request.param) as runner:
            runner.run(with_proxy(scenario))

    return run


def test_messages_arrive_in_order_together_or_when_they_come(run: Callable[[Scenario], None]) -> None:
    async def scenario(proxy: Proxy) -> None:
        async with proxy.request() as (queue, pull), proxy.request() as (other_queue, pull_other):
            for number in range(3):
                queue.put_nowait({"type": "websocket.receive", "text": str(number)})
            assert [message["text"] for message in await pull(0.0)] == ["0", "1", "2"]
            pending = asyncio.ensure_future(pull(0.0))
            other_queue.put_nowait({"type": "websocket.receive", "text": "other"})
            assert [message["text"] for message in await pull_other(0.0)] == ["other"]
            assert not pending.done()
            queue.put_nowait({"type": "websocket.disconnect", "code": 1005})
            assert await pending == [{"type": "websocket.disconnect", "code": 1005}]

    run(scenario)


def test_a_frame_may_be_larger_than_any_buffer(run: Callable[[Scenario], None]) -> None:
    async def scenario(proxy: Proxy) -> None:
        body = bytes(range(256)) * (20 << 10)
        async with proxy.request() as (queue, pull):
            for _ in range(3):
                queue.put_nowait({"type": "http.request", "body": body, "more_body": True})
                assert await pull(0.0) == [{"type": "http.request", "body": body, "more_body": True}]

    run(scenario)


def test_the_frames_of_requests_do_not_mix(run: Callable[[Scenario], None]) -> None:
    """Their buffers are used again, by the same request and by others."""

    async def scenario(proxy: Proxy) -> None:
        async def upload(number: int) -> None:
            async with proxy.request() as (queue, messages):
                for piece in range(20):
                    body = {"type": "http.request", "body": bytes([number, piece]) * (1 + 40_000 * (piece % 3))}
                    queue.put_nowait(body)
                    assert await messages(0.0) == [body]

        await asyncio.gather(*(upload(number) for number in range(12)))

    run(scenario)


def test_with_an_interval_the_messages_of_all_requests_come_at_the_same_moment(run: Callable[[Scenario], None]) -> None:
    async def scenario(proxy: Proxy) -> None:
        arrived: list[float] = []

        async def take(delay_s: float) -> None:
            async with proxy.request() as (queue, pull):
                pulling = asyncio.ensure_future(pull(1.0))
                await asyncio.sleep(delay_s)
                queue.put_nowait({"type": "websocket.receive", "text": "first"})
                await asyncio.sleep(0.01)
                queue.put_nowait({"type": "websocket.receive", "text": "second"})
                assert len(await pulling) == 2
                arrived.append(time.monotonic())

        # Not beside a multiple of the interval.
        await asyncio.sleep(1.05 - time.monotonic() % 1.0)
        async with asyncio.TaskGroup() as tasks:
            for number in range(5):
                tasks.create_task(take(number / 20))
        # The nearest multiple: uvloop rounds a time to milliseconds, so a timer may end before it.
        assert len({round(arrived_s) for arrived_s in arrived}) == 1

    run(scenario)


def test_a_request_that_is_over_ends_its_connection(run: Callable[[Scenario], None]) -> None:
    async def scenario(proxy: Proxy) -> None:
        async with proxy.request() as (_, pull):
            proxy.queues.clear()
            with pytest.raises((EOFError, ConnectionError)):
                await pull(0.0)

    run(scenario)


def test_an_ingress_that_leaves_while_it_waits_leaves_nothing_behind(run: Callable[[Scenario], None]) -> None:
    """The fixture waits for the end of what serves it."""

    async def scenario(proxy: Proxy) -> None:
        async with proxy.request() as (_, pull):
            pulling = asyncio.ensure_future(pull(0.0))
            await asyncio.sleep(0.01)
            pulling.cancel()
            with pytest.raises(asyncio.CancelledError):
                await pulling

    run(scenario)


def test_a_proxy_that_was_patched_again_serves_its_requests_but_no_new_ones(run: Callable[[Scenario], None]) -> None:
    async def scenario(proxy: Proxy) -> None:
        address = proxy.server.address
        async with proxy.request() as (queue, pull):
            queue.put_nowait({"type": "http.request", "body": b"1"})
            assert await pull(0.0) == [{"type": "http.request", "body": b"1"}]
            proxy.server.close()
            async with connected(address) as no_pull:
                assert no_pull is None
            queue.put_nowait({"type": "http.request", "body": b"2"})
            assert await pull(0.0) == [{"type": "http.request", "body": b"2"}]

    run(scenario)


@pytest.mark.parametrize("address", ["", "\0serve-messages-0-none"])
async def test_where_nothing_listens_there_is_no_pull(address: str) -> None:
    async with connected(address) as pull:
        assert pull is None


@pytest.mark.parametrize("refusing", ["ingress", "proxy"])
def test_a_process_of_another_user_gets_nothing(
    run: Callable[[Scenario], None], monkeypatch: pytest.MonkeyPatch, refusing: str
) -> None:
    async def scenario(proxy: Proxy) -> None:
        # The ingress checks first.
        users = itertools.chain([1] if refusing == "ingress" else [0, 1], itertools.repeat(0))
        own, metadata = os.geteuid(), cast("Any", Metadata())
        monkeypatch.setattr(os, "geteuid", lambda: own + next(users))
        async with connected(proxy.server.address) as pull:
            assert (pull is None) == (refusing == "ingress")
            if pull is not None:
                with pytest.raises((EOFError, ConnectionError)):
                    await pull(metadata, 0.0)

    run(scenario)


async def test_a_process_without_free_descriptors_calls_the_actor(monkeypatch: pytest.MonkeyPatch) -> None:
    def none_left(*_: Any) -> Any:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    async with connected("\0serve-messages-0-none") as pull:
        assert pull is None


def test_a_queue_that_was_closed_ends_its_connection(run: Callable[[Scenario], None]) -> None:
    async def scenario(proxy: Proxy) -> None:
        async with proxy.request() as (queue, pull):
            queue.close()  # type: ignore[no-untyped-call]
            with pytest.raises((EOFError, ConnectionError)):
                await pull(0.0)

    run(scenario)


def test_the_pieces_of_a_body_become_one() -> None:
    first, last = ({"type": "http.request", "body": body, "more_body": body == b"ab"} for body in (b"ab", b"c"))
    gone = {"type": "http.disconnect"}
    assert joined([first, last, gone]) == [{"type": "http.request", "body": b"abc", "more_body": False}, gone]
    audio = {"type": "websocket.receive", "bytes": b"1"}
    unchanged: list[list[Message]] = [[], [first], [gone], [first, gone], [audio, audio]]
    for messages in unchanged:
        assert joined(messages) == messages
