"""Settings from the environment variables of the two servers that this one replaces, so that their deployments work unchanged.

docs/migrating.md lists the variables and their effect; a test checks it. The `PARAKEET_` variables have precedence.
"""

import os
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource

from serve_app.window import MAX_WINDOW_S

TRUE_TEXTS = frozenset({"1", "true", "t", "yes", "on"})
"""Lower-case texts that mean true."""

FALSE_TEXTS = frozenset({"0", "false", "f", "no", "off"})
"""Lower-case texts that mean false."""

LOG_LEVELS = {"WARN": "WARNING", "CRITICAL": "ERROR", "FATAL": "ERROR", "TRACE": "DEBUG", "NOTSET": "DEBUG"}
"""Log levels that `log_level` does not have, with the level to use instead."""


class SeedVariables(PydanticBaseSettingsSource):
    """Applies the variables to the settings of the YAML (`file`).

    Window settings out of range are clipped to the allowed range. A value that is not a number, is negative or is not a known
    truth value raises ValueError.
    """

    def __init__(self, settings_cls: type[BaseSettings], file: PydanticBaseSettingsSource) -> None:
        super().__init__(settings_cls)
        self._file = file

    def get_field_value(self, field: FieldInfo, field_name: str) -> tuple[Any, str, bool]:
        return None, field_name, False

    def __call__(self) -> dict[str, Any]:
        return self._windows() | self._batching() | self._models() | self._keys() | self._log_level()

    def _windows(self) -> dict[str, Any]:
        window_s, overlap_s, minutes = _number("TRANSCRIBE_CHUNK_LEN"), _number("TRANSCRIBE_OVERLAP"), _number("CHUNK_MINITE")
        if window_s is None and minutes is not None:
            window_s = 60 * minutes
        if window_s is None and overlap_s is None:
            return {}
        default = self.settings_cls.model_fields["windows"].default
        file = self._file().get("windows") or {}
        given = dict(default) | (dict(file) if isinstance(file, Mapping | BaseModel) else {})
        if not all(isinstance(value, float | int) for value in given.values()):
            return {}
        if window_s is not None:
            given["window_s"] = min(max(window_s, default.MIN_WINDOW_S), MAX_WINDOW_S)
        if overlap_s is not None:
            given["overlap_s"] = overlap_s
        given["overlap_s"] = min(max(given["overlap_s"], default.MIN_OVERLAP_S), given["window_s"] / 2)
        return {"windows": given}

    @staticmethod
    def _batching() -> dict[str, Any]:
        items = _number("BATCH_SIZE")
        return {} if items is None else {"batching": {"max_batch_items": max(1, int(items))}}

    def _models(self) -> dict[str, Any]:
        """The idle time applies to every model; lazy loading only to the default model."""
        idle_minutes, is_lazy = _number("IDLE_TIMEOUT_MINUTES"), _truth_value("ENABLE_LAZY_LOAD")
        if idle_minutes is None and is_lazy is None:
            return {}
        file = self._file()
        given = file.get("models") or self.settings_cls.model_fields["models"].get_default(call_default_factory=True)
        if not all(isinstance(model, Mapping | BaseModel) for model in given):
            return {}
        models = [dict(model) for model in given]
        if idle_minutes is not None:
            for model in models:
                model["idle_unload_s"] = 60 * idle_minutes
        if is_lazy is not None:
            default_name = os.environ.get("PARAKEET_DEFAULT_MODEL") or file.get("default_model") or models[0].get("name")
            for model in (model for model in models if model.get("name") == default_name):
                model["min_replicas"] = 0 if is_lazy else max(1, model.get("min_replicas", 0))
        return {"models": models}

    @staticmethod
    def _keys() -> dict[str, Any]:
        keys = [key.strip() for key in os.environ.get("API_KEY", "").split(",") if key.strip()]
        return {"auth": {"keys": keys}} if keys else {}

    @staticmethod
    def _log_level() -> dict[str, Any]:
        level = os.environ.get("LOG_LEVEL", "").upper()
        return {"log_level": LOG_LEVELS.get(level, level)} if level else {}


def _number(name: str) -> float | None:
    value = os.environ.get(name, "")
    try:
        number = float(value) if value else None
    except ValueError:
        raise ValueError(f"{name}={value!r} is not a number") from None
    if number is not None and not 0 <= number < float("inf"):
        raise ValueError(f"{name}={value!r} must be a finite number of at least 0")
    return number


def _truth_value(name: str) -> bool | None:
    value = os.environ.get(name, "").lower()
    if value and value not in TRUE_TEXTS | FALSE_TEXTS:
        raise ValueError(f"{name}={value!r} must be true or false")
    return value in TRUE_TEXTS if value else None
