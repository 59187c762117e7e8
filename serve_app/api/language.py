"""The language of a request. It does not change the transcript, as no model takes it as an input; an unsupported one is 400."""

from typing import Annotated

from fastapi import Form

from serve_app.errors import RequestError
from serve_app.output.export import LANGUAGE_NAMES
from serve_app.settings import ModelSettings

CODES = {name: code for code, name in LANGUAGE_NAMES.items()}
"""ISO 639-1 codes by English name, lower case."""


def languages(
    language: Annotated[
        str | None,
        Form(description="A code (`en`, `en-US`) or an English name. The model must support it."),
    ] = None,
    several: Annotated[
        list[str] | None,
        Form(alias="languages[]", description="Languages that may be spoken. The model must support one of them."),
    ] = None,
) -> list[str]:
    """FastAPI dependency: codes of the languages asked for, empty if the request names none."""
    return codes([language or "", *(several or [])])


def codes(names: list[str]) -> list[str]:
    """The ISO 639-1 codes of languages given as codes or English names. Empty names and `auto` are skipped."""
    asked = [name.strip().lower() for name in names]
    return [CODES.get(name, name.replace("_", "-").partition("-")[0]) for name in asked if name not in ("", "auto")]


def check(asked: list[str], model: ModelSettings) -> str | None:
    """The language of the audio, if the request and the model leave only one; else None.

    Raises RequestError if the model supports none of the languages `asked` for.
    """
    possible = [code for code in model.languages if code in asked] if asked else list(model.languages)
    if not possible:
        supported = ", ".join(model.languages)
        message = f"The model `{model.name}` does not support the language `{asked[0]}`. Supported languages: {supported}."
        raise RequestError(message, param="language")
    return possible[0] if len(possible) == 1 else None
