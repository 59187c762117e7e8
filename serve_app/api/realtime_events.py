"""Events of OpenAI's Realtime API: what a client sends, read; and what answers it, made. Pure."""

import base64
import json
import uuid
from collections.abc import Mapping
from typing import Any

from serve_app.api.errors import describe
from serve_app.errors import RequestError, SpeechError

MAX_ECHOED = 512
"""Characters of what a client sent that it gets back."""


class EmptyBuffer(RequestError):
    code = "input_audio_buffer_commit_empty"


def new_id(kind: str) -> str:
    return f"{kind}_{uuid.uuid4().hex[:24]}"


def parsed(frame: str | bytes) -> dict[str, Any]:
    """A client's event; raises RequestError."""
    try:
        event = json.loads(frame)
    except (ValueError, RecursionError):
        raise RequestError("An event must be JSON.") from None
    if not isinstance(event, dict):
        raise RequestError("An event must be a JSON object.")
    return event


def audio_of(event: Mapping[str, Any]) -> bytes:
    """The audio of `input_audio_buffer.append`; raises RequestError."""
    try:
        return base64.b64decode(event["audio"], validate=True)
    except (KeyError, TypeError, ValueError):
        raise RequestError("`audio` must be base64.", param="audio") from None


def unknown(kind: Any) -> RequestError:
    message = f"There is no event of the type {str(kind)[:MAX_ECHOED]!r} in a transcription session."
    return RequestError(message, param="type")


def error(failure: SpeechError, client_event_id: Any = None) -> dict[str, Any]:
    """What tells of a failure, caused by the client's event of that id."""
    is_fit = isinstance(client_event_id, str) and len(client_event_id) <= MAX_ECHOED and client_event_id.isprintable()
    body = {**describe(failure).error.model_dump(), "event_id": client_event_id if is_fit else None}
    return {"type": "error", "event_id": new_id("event"), "error": body}
