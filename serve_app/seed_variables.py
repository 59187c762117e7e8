"""Environment variables of the servers that this one replaces, as settings: deployments that set them go on as they are."""

import os
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource


class SeedVariables(PydanticBaseSettingsSource):
    """`TRANSCRIBE_CHUNK_LEN` and `TRANSCRIBE_OVERLAP`, seconds, are `windows`, brought into the range that is allowed here.

    `API_KEY` is `auth.keys`, one or several with commas between.
    """

    def __init__(self, settings_cls: type[BaseSettings], file: PydanticBaseSettingsSource) -> None:
        super().__init__(settings_cls)
        self._file = file

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._windows() | self._keys()

    @staticmethod
    def _keys() -> dict[str, Any]:
        keys = [key.strip() for key in os.environ.get("API_KEY", "").split(",") if key.strip()]
        return {"auth": {"keys": keys}} if keys else {}

    def _windows(self) -> dict[str, Any]:
        window_s, overlap_s = _seconds("TRANSCRIBE_CHUNK_LEN"), _seconds("TRANSCRIBE_OVERLAP")
        if window_s is None and overlap_s is None:
            return {}
        default = self.settings_cls.model_fields["windows"].default
        given = dict(default) | dict(self._file().get("windows") or {})
        if window_s is not None:
            given["window_s"] = min(max(window_s, default.LEAST_WINDOW_S), default.MOST_WINDOW_S)
        if overlap_s is not None:
            given["overlap_s"] = overlap_s
        given["overlap_s"] = min(max(given["overlap_s"], default.LEAST_OVERLAP_S), given["window_s"] / 2)
        return {"windows": given}


def _seconds(name: str) -> float | None:
    value = os.environ.get(name, "")
    try:
        return float(value) if value else None
    except ValueError:
        raise ValueError(f"{name}={value!r} is not a number of seconds") from None
