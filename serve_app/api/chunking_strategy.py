"""OpenAI's `chunking_strategy`, as JSON or as bracketed form fields: window and overlap lengths chosen by a request."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Form
from pydantic import ValidationError

from serve_app.errors import RequestError
from serve_app.settings import WindowSettings

FIELD = "chunking_strategy"
OPENAI_KEYS = frozenset({"type", "prefix_padding_ms", "silence_duration_ms", "threshold"})
"""Keys of OpenAI's object."""

OWN_KEYS = frozenset({"window_s", "overlap_s"})
"""Keys that this server adds to it."""


@dataclass(frozen=True, slots=True)
class ChunkingStrategy:
    """Window and overlap lengths that a request asks for, seconds; None: as the model's settings say."""

    window_s: float | None = None
    overlap_s: float | None = None

    def windows(self, default: WindowSettings) -> WindowSettings:
        """The windows for a model whose settings are `default`. Raises RequestError for lengths that are not allowed."""
        window_s = default.window_s if self.window_s is None else self.window_s
        if window_s > default.window_s:
            raise RequestError(f"window_s must be at most {default.window_s:g}, the window length of the model.", param=FIELD)
        overlap_s = min(default.overlap_s, window_s / 2) if self.overlap_s is None else self.overlap_s
        try:
            return WindowSettings(window_s=window_s, overlap_s=overlap_s)
        except ValidationError as error:
            raise RequestError(_reason(error), param=FIELD) from error


async def chunking_strategy(
    value: Annotated[
        str | None,
        Form(
            alias=FIELD,
            description="`auto`, or a JSON object in OpenAI's form with the type `server_vad`. Both mean the same: windows are "
            "always cut where the audio is quiet, and OpenAI's VAD parameters are ignored. The keys `window_s` and `overlap_s`, "
            "seconds, are additions of this server.",
        ),
    ] = None,
    kind: Annotated[
        str | None, Form(alias=f"{FIELD}[type]", description="`chunking_strategy` as OpenAI's clients send it: its type.")
    ] = None,
    window_s: Annotated[
        float | None, Form(alias=f"{FIELD}[window_s]", description="Maximum length of a window, seconds.")
    ] = None,
    overlap_s: Annotated[
        float | None, Form(alias=f"{FIELD}[overlap_s]", description="Overlap of neighbouring windows, seconds.")
    ] = None,
) -> ChunkingStrategy:
    """FastAPI dependency: the strategy in the form's fields. Raises RequestError."""
    keys: dict[str, Any] = {"type": kind, "window_s": window_s, "overlap_s": overlap_s}
    if value not in (None, "", "auto"):
        try:
            keys = json.loads(value or "")
        except (ValueError, RecursionError):
            keys = {"type": value}
    if not isinstance(keys, dict) or keys.get("type") not in (None, "auto", "server_vad"):
        raise RequestError("The strategy must be `auto` or an object with the type `server_vad`.", param=FIELD)
    unknown = set(keys) - OPENAI_KEYS - OWN_KEYS
    if unknown:
        raise RequestError(f"The strategy has no {min(unknown)!a} field.", param=FIELD)
    try:
        return ChunkingStrategy(*(None if keys.get(key) is None else float(keys[key]) for key in ("window_s", "overlap_s")))
    except (TypeError, ValueError, OverflowError):
        raise RequestError("window_s and overlap_s must be numbers of seconds.", param=FIELD) from None


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    field = ".".join(map(str, first["loc"]))
    return f"{field} is wrong: {first['msg']}." if field else f"{first['msg']}."
