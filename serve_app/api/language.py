"""The language of a request. It does not change the transcript, as no model takes it as an input; an unsupported one is 400."""

import re
from typing import Annotated

from fastapi import Form

from serve_app.errors import RequestError
from serve_app.output.export import LANGUAGE_NAMES
from serve_app.settings import ModelSettings

THREE_LETTER_CODES = {
    "bg": "bul", "cs": "ces cze", "da": "dan", "de": "deu ger", "el": "ell gre", "en": "eng", "es": "spa", "et": "est ekk", "fi":
    "fin", "fr": "fra fre", "hr": "hrv", "hu": "hun", "it": "ita", "ja": "jpn", "lt": "lit", "lv": "lav lvs", "mt": "mlt", "nl":
    "nld dut", "pl": "pol", "pt": "por", "ro": "ron rum", "ru": "rus", "sk": "slk slo", "sl": "slv", "sv": "swe", "uk": "ukr",
}  # fmt: skip
"""ISO 639-2 (T and B) and ISO 639-3 codes by ISO 639-1 code, separated by spaces."""

CODES = {name: code for code, name in LANGUAGE_NAMES.items()} | {
    three_letters: code for code, several in THREE_LETTER_CODES.items() for three_letters in several.split()
}
"""ISO 639-1 codes by English name and by three-letter code, lower case."""

UNKNOWN = frozenset({
    "any", "auto", "autodetect", "automatic", "default", "detect", "mis", "mul", "multi", "multilingual", "none", "null", "und",
    "undefined", "undetermined", "unknown", "unspecified", "zxx",
})  # fmt: skip
"""What clients send for a language that they do not know. It asks for no language."""

REGION = re.compile(r"(?<=\w)[\W_].*", re.DOTALL)
"""All that follows the language in `en-US`, `en_US.UTF-8`, `auto-detect` and `English (United States)`."""


async def languages(
    language: Annotated[
        str | None,
        Form(description="A code (`en`, `en-US`, `eng`) or an English name. The model must support it."),
    ] = None,
    several: Annotated[
        list[str] | None,
        Form(alias="languages[]", description="Languages that may be spoken. The model must support one of them."),
    ] = None,
) -> list[str]:
    """FastAPI dependency: codes of the languages asked for, empty if the request names none."""
    return codes([language or "", *(several or [])])


def codes(names: list[str]) -> list[str]:
    """The ISO 639-1 codes of languages given as codes, with or without a region, or as English names.

    Empty and unknown ones are skipped; a code or name that is none of LANGUAGE_NAMES stays as it is.
    """
    asked = [REGION.sub("", name.strip().lower()) for name in names]
    return [CODES.get(name, name) for name in asked if name and name not in UNKNOWN]


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
