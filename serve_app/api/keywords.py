"""Phrases to boost: `keywords[]`, and a `prompt` that is a plain list of phrases."""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated

from fastapi import Form

from serve_app.errors import RequestError
from serve_app.settings import ModelSettings
from serve_app.window import Keywords

MAX_KEYWORDS = 100
"""Phrases in a request."""

MAX_KEYWORD_CHARS = 100
"""Characters of one phrase."""

MAX_TOTAL_CHARS = 2000
"""Characters of all phrases. Each makes the decoder's boosting tree larger: at this limit it takes 20 ms to build."""

FIELD = "keywords[]"
SEPARATORS = re.compile(r"[,;\n]")
"""Between the phrases of a list."""

SENTENCE_MARKS = re.compile(r"[.?!:](\s|$)")
"""A prompt with one of these is prose, not a list."""

BULLETS = "-*•"
MAX_PROMPT_CHARS = 4 * MAX_TOTAL_CHARS
"""Characters of a prompt that is a list; a longer one counts as prose."""

MAX_LISTED_WORDS = 3
"""Words of a phrase in a prompt; with a longer one the prompt counts as prose."""


@dataclass(frozen=True, slots=True)
class Phrases:
    """The phrases of a request, without repetitions and within the limits."""

    given: Keywords = ()
    """Those of `keywords[]`."""
    listed: Keywords = ()
    """Those that a prompt adds to them."""


async def from_form(
    given: Annotated[
        list[str] | None,
        Form(
            alias=FIELD,
            description=f"A phrase that is likely to occur, such as a name; can be repeated up to {MAX_KEYWORDS} times. At most "
            f"{MAX_KEYWORD_CHARS} characters each, {MAX_TOTAL_CHARS} in total. The decoder prefers it where the model is unsure.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        Form(
            description="A plain list (phrases of one to three words, separated by commas, semicolons or line breaks, without "
            f"sentence punctuation) is added to `{FIELD}` up to the same limits. Any other text is ignored."
        ),
    ] = None,
) -> Phrases:
    """FastAPI dependency: see `phrases`."""
    return phrases(given, prompt)


def check(asked: Phrases, model: ModelSettings, *, are_refused: bool) -> Keywords:
    """The phrases to boost. `are_refused`: see SpeechService.refuses_keywords; if so, raises RequestError for `keywords[]`, and a
    prompt counts as prose: its sender need not know that this server takes it for keywords."""
    if not are_refused:
        return asked.given + asked.listed
    if asked.given:
        raise RequestError(f"The model `{model.name}` has a CTC decoder, which takes no keywords.", param=FIELD)
    return ()


def phrases(given: list[str] | None = None, prompt: str | None = None) -> Phrases:
    """Raises RequestError where `keywords[]` exceeds a limit."""
    found = _normalised(given or [])
    if len(found) > MAX_KEYWORDS:
        raise RequestError(f"There are {len(found)} keywords; at most {MAX_KEYWORDS} are allowed.", param=FIELD)
    if any(len(phrase) > MAX_KEYWORD_CHARS for phrase in found):
        raise RequestError(f"A keyword may have at most {MAX_KEYWORD_CHARS} characters.", param=FIELD)
    if sum(map(len, found)) > MAX_TOTAL_CHARS:
        raise RequestError(f"All keywords together may have at most {MAX_TOTAL_CHARS} characters.", param=FIELD)
    room_chars = MAX_TOTAL_CHARS - sum(map(len, found))
    listed: Keywords = ()
    for phrase in _phrases_of(prompt or ""):
        if len(found) + len(listed) == MAX_KEYWORDS:
            break
        if phrase not in found and len(phrase) <= min(MAX_KEYWORD_CHARS, room_chars):
            listed += (phrase,)
            room_chars -= len(phrase)
    return Phrases(found, listed)


def _phrases_of(prompt: str) -> list[str]:
    """The phrases of a prompt that is a list; empty for prose."""
    if len(prompt) > MAX_PROMPT_CHARS:
        return []
    found = _normalised(phrase.strip().lstrip(BULLETS) for phrase in SEPARATORS.split(prompt))
    is_list = len(found) > 1 and not SENTENCE_MARKS.search(prompt)
    return list(found) if is_list and all(len(phrase.split()) <= MAX_LISTED_WORDS for phrase in found) else []


def _normalised(phrases: Iterable[str]) -> Keywords:
    return tuple(dict.fromkeys(" ".join(phrase.split()) for phrase in phrases if phrase.strip()))
