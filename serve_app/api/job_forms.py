"""What the fields of a new job must be."""

import hashlib
import json
import math
from collections.abc import Sequence
from contextlib import aclosing
from typing import Any, BinaryIO

from serve_app.decoders.recording import Recording
from serve_app.diarizing import SpeakerOptions
from serve_app.errors import RequestError

MAX_METADATA_BYTES = 4096
_MAX_DEPTH = 32
"""Of the objects and lists in `metadata`."""

PROBE_S = 10.0
"""Audio at the start of a file that is decoded before the answer, seconds."""

_PIECE_BYTES = 1 << 20


async def length_s(recording: Recording) -> float | None:
    """The length that a file states, seconds; None: none. Raises AudioError for a file without audio that can be decoded."""
    async with aclosing(recording.windows(PROBE_S, 0)) as windows:
        await anext(windows, None)
    return recording.expected_s


def speaker_fields(speakers: SpeakerOptions | None) -> dict[str, Any]:
    """What a `JobRequest` keeps of who speaks."""
    if speakers is None:
        return {}
    return {
        "diarizer": speakers.diarizer,
        "diarizer_is_optional": speakers.is_optional,
        "knows_speakers": bool(speakers.known),
    }


def ttl_s_of(asked_s: float | None, default_s: float, max_s: float) -> float:
    if asked_s is None:
        return default_s
    if not math.isfinite(asked_s) or asked_s > max_s:
        raise RequestError(f"A job may be kept for at most {max_s:.0f} s after its end.", param="ttl_s")
    return asked_s


def metadata_of(text: str | None) -> dict[str, Any] | None:
    """The JSON object of the field `metadata`. Raises RequestError."""
    if text is None or not text.strip():
        return None
    try:
        if len(text.encode()) > MAX_METADATA_BYTES:
            raise RequestError(f"`metadata` may have at most {MAX_METADATA_BYTES} bytes.", param="metadata")
        value = json.loads(text)
        # Neither of these could be sent again: numbers that are not finite, and halves of characters.
        json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict) or not _is_flat(value, _MAX_DEPTH):
        raise RequestError(f"`metadata` must be a JSON object, of at most {_MAX_DEPTH} levels.", param="metadata")
    return value


def _is_flat(value: Any, levels: int) -> bool:
    """Whether a JSON value has at most so many levels."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    return levels > 0 and all(_is_flat(each, levels - 1) for each in inner)


def digest_of(form: list[tuple[str, str]], files: Sequence[BinaryIO]) -> str:
    """Of everything that a request asks for."""
    hashed = hashlib.sha256(json.dumps(sorted(form)).encode())
    for file in files:
        file.seek(0)
        while piece := file.read(_PIECE_BYTES):
            hashed.update(piece)
    return hashed.hexdigest()
