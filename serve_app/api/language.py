"""The language of a request: none of the models can be told which to write, but one that a model does not speak is refused."""

from typing import Annotated

from fastapi import Form

from serve_app.errors import RequestError
from serve_app.output.export import LANGUAGE_NAMES
from serve_app.settings import ModelSettings

CODES = {name: code for code, name in LANGUAGE_NAMES.items()}


def languages(
    language: Annotated[
        str | None,
        Form(description="A code (`en`, `en-US`) or an English name. The model must speak it."),
    ] = None,
    several: Annotated[
        list[str] | None, Form(alias="languages[]", description="Languages that may be spoken; one of them must be the model's.")
    ] = None,
) -> list[str]:
    """FastAPI dependency: codes of the languages asked for, none when it is left open."""
    return codes([language or "", *(several or [])])


def codes(names: list[str]) -> list[str]:
    """The codes of languages given as codes or English names."""
    asked = [name.strip().lower() for name in names]
    return [CODES.get(name, name.replace("_", "-").partition("-")[0]) for name in asked if name not in ("", "auto")]


def check(asked: list[str], model: ModelSettings) -> str | None:
    """The one language that is left, None if several are; raises RequestError when the model speaks none of them."""
    spoken = [code for code in model.languages if code in asked] if asked else list(model.languages)
    if not spoken:
        known = ", ".join(model.languages)
        raise RequestError(f"The model `{model.name}` does not speak `{asked[0]}`. It speaks: {known}.", param="language")
    return spoken[0] if len(spoken) == 1 else None
