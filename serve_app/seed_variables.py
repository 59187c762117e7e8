"""Environment variables of the servers that this one replaces, as settings: deployments that set them go on as they are."""

import os
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import PydanticBaseSettingsSource

LEAST_WINDOW_S, MOST_WINDOW_S = 3.0, 600.0
LEAST_OVERLAP_S = 1.5


class SeedVariables(PydanticBaseSettingsSource):
    """`TRANSCRIBE_CHUNK_LEN` and `TRANSCRIBE_OVERLAP`, seconds, are `windows`, brought into the range that is allowed here."""

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        windows: dict[str, float] = {}
        window_s, overlap_s = _seconds("TRANSCRIBE_CHUNK_LEN"), _seconds("TRANSCRIBE_OVERLAP")
        if window_s is not None:
            windows["window_s"] = min(max(window_s, LEAST_WINDOW_S), MOST_WINDOW_S)
        if overlap_s is not None:
            most_s = windows["window_s"] / 2 if windows else MOST_WINDOW_S
            windows["overlap_s"] = min(max(overlap_s, LEAST_OVERLAP_S), most_s)
        return {"windows": windows} if windows else {}


def _seconds(name: str) -> float | None:
    value = os.environ.get(name, "")
    try:
        return float(value) if value else None
    except ValueError:
        raise ValueError(f"{name}={value!r} is not a number of seconds") from None
