"""Events of OpenAI's Realtime API: parses those of the client, and builds the server's `error` event. Pure."""

import base64
import json
import re
import uuid
from collections.abc import Mapping
from typing import Any

from serve_app.api.errors import error_body
from serve_app.api.websocket_connection import MAX_MESSAGE_CHARS
from serve_app.errors import RequestError, SpeechError

MAX_ECHO_CHARS = 512
"""Maximum length of a client's text that is sent back to it, characters."""


AUDIO = re.compile(r'"audio"\s*:\s*"')
"""Begins the audio of an event."""


class EmptyBuffer(RequestError):
    code = "input_audio_buffer_commit_empty"


def new_id(kind: str) -> str:
    """A random id in OpenAI's form: `kind_...`."""
    return f"{kind}_{uuid.uuid4().hex[:24]}"


def parse(frame: str | bytes) -> dict[str, Any]:
    """A client's event; raises RequestError. Its size is checked before it is parsed."""
    try:
        text = frame if isinstance(frame, str) else frame.decode()
        if _chars_without_audio(text) > MAX_MESSAGE_CHARS:
            raise RequestError(f"An event may have at most {MAX_MESSAGE_CHARS} characters besides its audio.")
        event = json.loads(text)
    except (ValueError, RecursionError):
        raise RequestError("An event must be JSON.") from None
    if not isinstance(event, dict):
        raise RequestError("An event must be a JSON object.")
    return event


def _chars_without_audio(text: str) -> int:
    """Length of an event without the string that is its audio. Base64 has no quotation mark."""
    if len(text) <= MAX_MESSAGE_CHARS or (audio := AUDIO.search(text)) is None:
        return len(text)
    end = text.find('"', audio.end())
    return len(text) if end < 0 else len(text) - (end - audio.end())


def audio_of(event: Mapping[str, Any]) -> bytes:
    """The audio of `input_audio_buffer.append`; raises RequestError."""
    try:
        return base64.b64decode(event["audio"], validate=True)
    except (KeyError, TypeError, ValueError):
        raise RequestError("`audio` must be base64.", param="audio") from None


def unsupported(kind: Any) -> RequestError:
    """The error for an event of a type that transcription sessions do not have."""
    message = f"Events of the type {str(kind)[:MAX_ECHO_CHARS]!r} are not supported in a transcription session."
    return RequestError(message, param="type")


def error(failure: SpeechError, client_event_id: Any = None) -> dict[str, Any]:
    """The `error` event for a failure. `client_event_id` is the `event_id` of the client's event that caused it."""
    can_echo = isinstance(client_event_id, str) and len(client_event_id) <= MAX_ECHO_CHARS and client_event_id.isprintable()
    body = {**error_body(failure).error.model_dump(), "event_id": client_event_id if can_echo else None}
    return {"type": "error", "event_id": new_id("event"), "error": body}
