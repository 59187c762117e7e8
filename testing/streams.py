"""WebSocket connections to a running server."""

import contextlib
import json
from typing import Any

import websockets
from websockets.asyncio.client import ClientConnection

from serve_app.api.websocket import PATH
from testing.server import Server

REALTIME = "/v1/realtime?intent=transcription"


def connect(server: Server, path: str = PATH, **options: Any) -> Any:
    return websockets.connect(server.url.replace("http", "ws") + path, max_size=None, **options)


async def until_closed(socket: ClientConnection, code: int) -> list[dict[str, Any]]:
    """The messages up to the server's close with that code."""
    messages: list[dict[str, Any]] = []
    with contextlib.suppress(websockets.ConnectionClosedError):
        async for data in socket:
            messages.append(json.loads(data))
    assert socket.close_code == code
    return messages
