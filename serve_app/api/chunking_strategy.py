"""How a request asks for windows other than the model's: OpenAI's `chunking_strategy`, as JSON or as bracketed fields."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Form
from pydantic import ValidationError

from serve_app.errors import RequestError
from serve_app.settings import WindowSettings

FIELD = "chunking_strategy"
OPENAI_KEYS = frozenset({"type", "prefix_padding_ms", "silence_duration_ms", "threshold"})
OWN_KEYS = frozenset({"window_s", "overlap_s"})


@dataclass(frozen=True, slots=True)
class ChunkingStrategy:
    """What was asked for; None where nothing was."""

    window_s: float | None = None
    overlap_s: float | None = None

    def windows(self, default: WindowSettings) -> WindowSettings:
        """The windows for a model whose own are `default`; raises RequestError for what the server does not do."""
        window_s = default.window_s if self.window_s is None else self.window_s
        if window_s > default.window_s:
            raise RequestError(f"window_s must be at most {default.window_s:g}, the model's.", param=FIELD)
        overlap_s = min(default.overlap_s, window_s / 2) if self.overlap_s is None else self.overlap_s
        try:
            return WindowSettings(window_s=window_s, overlap_s=overlap_s)
        except ValidationError as error:
            raise RequestError(_reason(error), param=FIELD) from error


def chunking_strategy(
    value: Annotated[
        str | None,
        Form(
            alias=FIELD,
            description="`auto`, or JSON in OpenAI's form. Its `type` is `server_vad`; its numbers have no effect, as cuts "
            "are made where it is quiet anyway. `window_s` and `overlap_s`, seconds, are this server's additions.",
        ),
    ] = None,
    kind: Annotated[str | None, Form(alias=f"{FIELD}[type]", description="The same, as OpenAI's clients send it.")] = None,
    window_s: Annotated[float | None, Form(alias=f"{FIELD}[window_s]", description="Longest window, seconds.")] = None,
    overlap_s: Annotated[
        float | None, Form(alias=f"{FIELD}[overlap_s]", description="Seconds that neighbouring windows share.")
    ] = None,
) -> ChunkingStrategy:
    """FastAPI dependency: what the form's fields ask for. Raises RequestError."""
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
        raise RequestError(f"The strategy has no {min(unknown)!a}.", param=FIELD)
    try:
        return ChunkingStrategy(*(None if keys.get(key) is None else float(keys[key]) for key in ("window_s", "overlap_s")))
    except (TypeError, ValueError, OverflowError):
        raise RequestError("window_s and overlap_s must be numbers of seconds.", param=FIELD) from None


def _reason(error: ValidationError) -> str:
    first = error.errors()[0]
    place = ".".join(map(str, first["loc"]))
    return f"{place} is wrong: {first['msg']}." if place else f"{first['msg']}."
