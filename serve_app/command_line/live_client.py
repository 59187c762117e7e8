"""Client of the live WebSocket: sends audio, and prints final segments as lines and partial words in place."""

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

from serve_app.command_line.audio_sources import AudioSource
from serve_app.command_line.client import CONNECT_S, Failure, one_line

PATH = "/v1/audio/transcriptions/ws"


class Screen:
    """Standard output. Partial words are shown on a terminal only."""

    def __init__(self, *, with_times: bool) -> None:
        self._with_times = with_times
        self._partials: dict[int, Text] = {}
        """By channel; 0 where the channels are mixed."""
        self._console = Console(file=sys.stdout, highlight=False)
        self._partial = Live(console=self._console, transient=True, auto_refresh=False, vertical_overflow="visible")

    def __enter__(self) -> Self:
        if self._console.is_terminal:
            self._partial.start()
        return self

    def __exit__(self, _type: type[BaseException] | None, _error: BaseException | None, _trace: TracebackType | None) -> None:
        self._partial.stop()

    def show_partial(self, message: Mapping[str, Any]) -> None:
        """Show the words after the last segment of a channel; those that may still change are dim."""
        text = Text(_label(message))
        for word in message["words"]:
            text.append(f"{word['word']} ", style="" if word["is_final"] else "dim")
        self._set_partial(message.get("channel", 0), text if message["words"] else None, refresh=True)

    def show_segment(self, segment: Mapping[str, Any]) -> None:
        time = f"[{_clock(segment['start'])}] " if self._with_times else ""
        self._set_partial(segment.get("channel", 0), None, refresh=self._partial.is_started)
        self._console.print(f"{time}{_label(segment)}{segment['text']}", markup=False, emoji=False, soft_wrap=True)

    def _set_partial(self, channel: int, text: Text | None, *, refresh: bool) -> None:
        self._partials.pop(channel, None)
        if text is not None:
            self._partials[channel] = text
        self._partial.update(Text("\n").join(text for _, text in sorted(self._partials.items())), refresh=refresh)


async def listen(url: str, api_key: str | None, fields: Mapping[str, Any], audio: AudioSource, screen: Screen) -> None:
    """Transcribe `audio` until it ends or Ctrl-C stops it, and show all of its text. Raises Failure.

    `fields` are those of the stream's configuration that do not describe the audio.
    """
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    address = "ws" + url.removeprefix("http") + PATH
    try:
        # No ping timeout: when the server slows a fast sender down, its pongs are late too.
        options: dict[str, Any] = {"max_size": None, "open_timeout": CONNECT_S, "ping_timeout": None}
        connection = websockets.connect(address, additional_headers=headers, **options)
        async with connection as socket:
            await socket.send(json.dumps({**fields, **audio.config, "interim_results": True}))
            sending = asyncio.create_task(_send(socket, audio))
            with _stopped_by_ctrl_c(sending):
                try:
                    await _receive(socket, screen)
                finally:
                    sending.cancel()
                    await asyncio.wait([sending])
                    if not sending.cancelled():
                        # If sending failed, report that instead of the error that it caused while receiving.
                        sending.result()
    except websockets.InvalidHandshake as error:
        raise Failure(f"{url} does not accept live speech, or is still starting: {error}") from error
    except (OSError, TimeoutError) as error:
        raise Failure(f"{url} cannot be reached: {error}") from error
    except websockets.ConnectionClosed as error:
        raise Failure("the server closed the connection too early") from error


@contextmanager
def _stopped_by_ctrl_c(task: asyncio.Task[None]) -> Iterator[None]:
    """The first Ctrl-C cancels the task; the next one has its usual effect."""
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


async def _send(socket: ClientConnection, audio: AudioSource) -> None:
    """Send the audio, then END, also when cancelled. A closed connection is no error here: `_receive` reports it."""
    try:
        async for chunk in audio.chunks:
            await socket.send(chunk)
    except websockets.ConnectionClosed:
        return
    finally:
        with suppress(websockets.ConnectionClosed):
            await socket.send("END")


async def _receive(socket: ClientConnection, screen: Screen) -> None:
    async for data in socket:
        message = json.loads(data)
        match message["type"]:
            case "partial":
                screen.show_partial(message)
            case "segment":
                screen.show_segment(message)
            case "error":
                raise Failure(one_line(message["error"]))
            case "final_transcription":
                return
    raise Failure("the server closed the connection too early")


def _label(message: Mapping[str, Any]) -> str:
    """Names the channel, if there is one."""
    return f"Channel {message['channel']}: " if "channel" in message else ""


def _clock(seconds: float) -> str:
    return f"{int(seconds // 3600)}:{int(seconds // 60) % 60:02}:{seconds % 60:04.1f}"
