"""Targets of webhooks: real HTTP servers of this process, on addresses of the loopback network."""

import asyncio
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass


@dataclass(frozen=True)
class Received:
    """A request."""

    request_line: str
    headers: dict[str, str]
    """Names in lower case."""
    body: bytes


def answer(status: int, *headers: str, body: bytes = b"") -> bytes:
    """An HTTP response."""
    return "\r\n".join([f"HTTP/1.1 {status} X", f"Content-Length: {len(body)}", *headers, "", ""]).encode() + body


class Receiver:
    """Notes every request, and answers with what `respond` returns, which may take its time; 204 where it is not set."""

    def __init__(self, address: str, port: int) -> None:
        self.address = address
        self.port = port
        self.received: list[Received] = []
        self.connections = 0
        self.cut_off = 0
        """Clients that went away before they had the whole response."""
        self.stays_open = False
        """Whether connections stay open after the response."""
        self.respond: Callable[[Received], Awaitable[bytes]] = self._no_content

    def url(self, host: str | None = None, scheme: str = "http") -> str:
        return f"{scheme}://{host or self.address}:{self.port}/hook?a=b"

    def answers(self, *responses: bytes) -> None:
        """Answer with each in turn, and then with the last one."""

        async def respond(_: Received) -> bytes:
            return responses[min(len(self.received), len(responses)) - 1]

        self.respond = respond

    async def _no_content(self, _: Received) -> bytes:
        return answer(204)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            head = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
            headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in head[1:] if line)}
            body = await reader.readexactly(int(headers["content-length"]))
            self.received.append(Received(head[0], headers, body))
            writer.write(await self.respond(self.received[-1]))
            await writer.drain()
            if self.stays_open:
                await asyncio.Event().wait()
        except asyncio.IncompleteReadError:
            pass
        except ConnectionError:
            self.cut_off += 1
        except asyncio.CancelledError:
            writer.transport.abort()
        finally:
            writer.close()
            with suppress(ConnectionError, ssl.SSLError):
                await writer.wait_closed()


@asynccontextmanager
async def receiver(address: str = "127.0.0.1", port: int = 0, tls: ssl.SSLContext | None = None) -> AsyncIterator[Receiver]:
    """A target that listens while this is open. Those which are still busy with a request then are cut off."""
    made = Receiver(address, port)
    serving = set[asyncio.Task[None]]()

    def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        serving.add(asyncio.create_task(made.serve(reader, writer)))

    server = await asyncio.start_server(serve, address, port, ssl=tls)
    made.port = server.sockets[0].getsockname()[1]
    try:
        yield made
    finally:
        server.close()
        for task in serving:
            task.cancel()
        await asyncio.gather(*serving, return_exceptions=True)
