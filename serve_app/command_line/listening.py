"""Live speech goes to the server, and what it hears comes back: words that may change in place, finished segments as lines."""

import asyncio
import json
import signal
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from types import TracebackType
from typing import Any, Self

import websockets
from rich.console import Console
from rich.live import Live
from rich.text import Text
from websockets.asyncio.client import ClientConnection

from serve_app.command_line.client import CONNECT_S, Failure, one_line
from serve_app.command_line.speech import Speech

PATH = "/v1/audio/transcriptions/ws"


class Screen:
    """Standard output. Words that may change are shown on a terminal only."""

    def __init__(self, *, with_times: bool) -> None:
        self._with_times = with_times
        self._console = Console(file=sys.stdout, highlight=False)
        self._partial = Live(console=self._console, transient=True, auto_refresh=False, vertical_overflow="visible")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._partial.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._partial.stop()

    def show_partial(self, words: list[dict[str, Any]]) -> None:
        """Words behind the last line; those that may change are dim."""
        text = Text()
        for word in words:
            text.append(f"{word['word']} ", style="" if word["is_final"] else "dim")
        self._partial.update(text, refresh=True)

    def show_segment(self, segment: Mapping[str, Any]) -> None:
        time = f"[{_clock(segment['start'])}] " if self._with_times else ""
        self._partial.update(Text(), refresh=self._partial.is_started)
        self._console.print(f"{time}{segment['text']}", markup=False, emoji=False, soft_wrap=True)


async def listen(url: str, api_key: str | None, fields: Mapping[str, Any], speech: Speech, screen: Screen) -> None:
    """Until the speech ends, or Ctrl-C ends it; what was said is shown to its end. Raises Failure."""
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    address = "ws" + url.removeprefix("http") + PATH
    try:
        # Where a server lets a fast sender wait, its pongs wait too.
        options: dict[str, Any] = {"max_size": None, "open_timeout": CONNECT_S, "ping_timeout": None}
        connection = websockets.connect(address, additional_headers=headers, **options)
        async with connection as socket:
            await socket.send(json.dumps({**fields, **speech.form, "interim_results": True}))
            speaking = asyncio.create_task(_speak(socket, speech))
            with _stopped_by_ctrl_c(speaking):
                try:
                    await _hear(socket, screen)
                finally:
                    speaking.cancel()
                    await asyncio.wait([speaking])
                    if not speaking.cancelled():
                        # A failure here is the cause of the one that was heard.
                        speaking.result()
    except websockets.InvalidHandshake as error:
        raise Failure(f"{url} does not take live speech: {error}") from error
    except (OSError, TimeoutError) as error:
        raise Failure(f"{url} cannot be reached: {error}") from error
    except websockets.ConnectionClosed as error:
        raise Failure("the server broke off") from error


@contextmanager
def _stopped_by_ctrl_c(task: asyncio.Task[None]) -> Iterator[None]:
    """The first Ctrl-C cancels the task; the next one is as usual."""
    loop = asyncio.get_running_loop()

    def stop() -> None:
        task.cancel()
        loop.remove_signal_handler(signal.SIGINT)

    try:
        loop.add_signal_handler(signal.SIGINT, stop)
    except (NotImplementedError, ValueError):
        # Not on Windows, nor outside the main thread.
        yield
        return
    try:
        yield
    finally:
        loop.remove_signal_handler(signal.SIGINT)


async def _speak(socket: ClientConnection, speech: Speech) -> None:
    """Send what is said, and its end however it comes; the connection's own end is seen by who hears."""
    try:
        async for piece in speech.pieces:
            await socket.send(piece)
    except websockets.ConnectionClosed:
        return
    finally:
        with suppress(websockets.ConnectionClosed):
            await socket.send("END")


async def _hear(socket: ClientConnection, screen: Screen) -> None:
    async for data in socket:
        message = json.loads(data)
        match message["type"]:
            case "partial":
                screen.show_partial(message["words"])
            case "segment":
                screen.show_segment(message)
            case "error":
                raise Failure(one_line(message["error"]))
            case "final_transcription":
                return
    raise Failure("the server broke off")


def _clock(seconds: float) -> str:
    return f"{int(seconds // 3600)}:{int(seconds // 60) % 60:02}:{seconds % 60:04.1f}"
