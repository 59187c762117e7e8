"""Commands for the server with jobs, and what is needed to test them."""

import time
from collections.abc import Callable
from typing import Any

import httpx2
from click.testing import CliRunner, Result
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from serve_app.command_line import main
from testing.job_service import JobServer


def run(server: JobServer | str, *arguments: str, input: bytes | None = None) -> Result:
    url = server if isinstance(server, str) else server.url
    return CliRunner().invoke(main, arguments, input=input, env={"PARAKEET_URL": url})


def submit(server: JobServer, *arguments: str) -> list[str]:
    """The ids."""
    done = run(server, "submit", *arguments)
    assert done.exit_code == 0, done.stderr
    return done.stdout.splitlines()


def listed(server: JobServer) -> list[dict[str, Any]]:
    """The newest first."""
    return list(httpx2.get(f"{server.url}/v1/jobs").json()["data"])


def until(is_so: Callable[[], bool]) -> None:
    while not is_so():
        time.sleep(0.01)


class Breaking:
    """Breaks the first request with this method and end of the path, before part `part` of the body of its answer."""

    def __init__(self, method: str, end: str, part: int) -> None:
        self.method, self.end, self.part = method, end, part
        self.headers: list[dict[bytes, bytes]] = []
        """Of those requests."""

    def __call__(self, app: ASGIApp) -> ASGIApp:
        async def broken(scope: Scope, receive: Receive, send: Send) -> None:
            parts = 0

            async def sent(message: Message) -> None:
                nonlocal parts
                parts += message["type"] == "http.response.body"
                if parts > self.part:
                    raise ConnectionResetError
                await send(message)

            if scope.get("method") != self.method or not scope["path"].endswith(self.end):
                await app(scope, receive, send)
                return
            self.headers.append(dict(scope["headers"]))
            await app(scope, receive, sent if len(self.headers) == 1 else send)

        return broken
