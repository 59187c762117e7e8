"""The way to a target: one request, to an address that was checked.

A name is looked up once, its addresses are checked, and the connection goes to exactly those; so it does not matter what the
name stands for a moment later. Nothing else leads elsewhere: redirects are not followed, proxies of the environment are not used,
and every request has a connection of its own.
"""

import asyncio
import socket
import ssl
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from ipaddress import ip_address

import httpx2

from serve_app.jobs.webhook_targets import Target, WebhookTargets

LookUp = Callable[[str, int], Awaitable[list[str]]]
"""Returns the IP addresses of a name, for a port. Raises OSError."""

TIMEOUT_S = 10.0
"""How long the head of an answer may take, from looking up the name on, seconds."""
CONNECT_S = 4.0
"""How long an address may take to accept a connection, seconds."""
MAX_ADDRESSES = 4
"""So many addresses of a target are tried."""
MAX_BODY_BYTES = 4096
"""So much of the body of an answer is read, and thrown away."""
BODY_S = 1.0
"""How long reading it may take, seconds."""
LOOK_UPS = 32
"""Threads that look up names. A name server that does not answer holds one for longer than the request lasts."""


class NoAnswer(Exception):
    """The target did not answer. The message says why, and may be shown to the owner of the job."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a target answered."""

    status: int
    retry_after: str | None
    """The header `Retry-After`."""


class WebhookClient:
    """Sends to targets. Use `close` at the end.

    `verify`: the TLS context; True: certificates are checked with the authorities of the system, or those that SSL_CERT_FILE or
    SSL_CERT_DIR name.
    """

    def __init__(
        self,
        targets: WebhookTargets,
        *,
        look_up: LookUp | None = None,
        verify: ssl.SSLContext | bool = True,
        timeout_s: float = TIMEOUT_S,
    ) -> None:
        self._targets = targets
        self._threads = ThreadPoolExecutor(LOOK_UPS, thread_name_prefix="webhook-names")
        self._look_up = look_up or self._system_look_up
        # Connections would be kept by address. One that was made for a name must not serve another name at the same address.
        self._transport = httpx2.AsyncHTTPTransport(verify=verify, limits=httpx2.Limits(max_keepalive_connections=0))
        self._timeout_s = timeout_s

    async def close(self) -> None:
        await self._transport.aclose()
        self._threads.shutdown(wait=False, cancel_futures=True)

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send one message. Raises RequestError if the URL may not be a target, and NoAnswer."""
        target = self._targets.target(url)
        try:
            async with asyncio.timeout(self._timeout_s):
                response = await self._first_answer(target, headers, body)
        except TimeoutError:
            raise NoAnswer(f"No answer within {self._timeout_s:g} s.") from None
        except httpx2.HTTPError as error:
            raise NoAnswer(f"No answer: {str(error)[:200] or type(error).__name__}") from error
        try:
            with suppress(TimeoutError, httpx2.HTTPError):
                async with asyncio.timeout(BODY_S):
                    await _read_a_little(response)
        finally:
            await response.aclose()
        return Answer(response.status_code, response.headers.get("retry-after"))

    async def _addresses(self, target: Target) -> list[str]:
        """The addresses to try. Raises RequestError if one of the target's may not be connected to, and NoAnswer."""
        if target.address is not None:
            return [target.host]
        try:
            addresses = await self._look_up(target.host, target.port)
        except OSError as error:
            raise NoAnswer("The name of the host cannot be looked up.") from error
        self._targets.check(target, map(ip_address, addresses))
        return addresses[:MAX_ADDRESSES]

    async def _first_answer(self, target: Target, headers: Mapping[str, str], body: bytes) -> httpx2.Response:
        """The answer of the first address that accepts a connection; its body is still to be read."""
        failure: Exception = NoAnswer("The name of the host has no address.")
        for address in await self._addresses(target):
            request = httpx2.Request(
                "POST",
                target.url.copy_with(host=address),
                headers={**headers, "Host": target.url.netloc.decode("ascii"), "Connection": "close"},
                content=body,
                # The certificate is checked for the name.
                extensions={"sni_hostname": target.host, "timeout": httpx2.Timeout(None, connect=CONNECT_S).as_dict()},
            )
            try:
                return await self._transport.handle_async_request(request)
            except (httpx2.ConnectError, httpx2.ConnectTimeout) as error:
                failure = error
        raise failure

    async def _system_look_up(self, name: str, port: int) -> list[str]:
        loop = asyncio.get_running_loop()
        found = await loop.run_in_executor(self._threads, lambda: socket.getaddrinfo(name, port, type=socket.SOCK_STREAM))
        return list(dict.fromkeys(str(where[0]) for *_, where in found))


async def _read_a_little(response: httpx2.Response) -> None:
    """So that a target which says little sees a client that has listened."""
    read_bytes = 0
    async for chunk in response.aiter_raw():
        read_bytes += len(chunk)
        if read_bytes >= MAX_BODY_BYTES:
            break
