"""Phrases that a request expects: `keywords[]`, and a `prompt` that is a plain list."""

import re
from collections.abc import Iterable
from typing import Annotated

from fastapi import Form

from serve_app.errors import RequestError
from serve_app.window import Keywords

MAX_KEYWORDS = 100
MAX_KEYWORD_CHARS = 100
MAX_TOTAL_CHARS = 2000
"""Every character grows the decoder's tree, which takes up to 20 ms to build and its place in the memory."""

FIELD = "keywords[]"
LIST_MARKS = re.compile(r"[,;\n]")
SENTENCE_MARKS = re.compile(r"[.?!:](\s|$)")
BULLETS = "-*•"
MAX_LISTED_WORDS = 3


def keywords(
    given: Annotated[
        list[str] | None,
        Form(
            alias=FIELD,
            description=f"A phrase that is likely, such as a name; may stand {MAX_KEYWORDS} times. At most {MAX_KEYWORD_CHARS} "
            f"characters each, {MAX_TOTAL_CHARS} in all. The decoder leans towards it where the model is in doubt.",
        ),
    ] = None,
    prompt: Annotated[
        str | None,
        Form(
            description="A plain list (phrases of one to three words with commas, semicolons or line ends between, and no end "
            f"of a sentence) counts as `{FIELD}`, as far as there is room. Any other text has no effect."
        ),
    ] = None,
) -> Keywords:
    """FastAPI dependency: every phrase once. Raises RequestError for too many of `keywords[]`, or too long ones."""
    found = _tidy(given or [])
    if len(found) > MAX_KEYWORDS:
        raise RequestError(f"There are {len(found)} keywords; at most {MAX_KEYWORDS} are allowed.", param=FIELD)
    if any(len(phrase) > MAX_KEYWORD_CHARS for phrase in found):
        raise RequestError(f"A keyword may have {MAX_KEYWORD_CHARS} characters at most.", param=FIELD)
    if sum(map(len, found)) > MAX_TOTAL_CHARS:
        raise RequestError(f"The keywords may have {MAX_TOTAL_CHARS} characters in all.", param=FIELD)
    for phrase in _listed(prompt or ""):
        longer = _tidy([*found, phrase])
        if len(longer) <= MAX_KEYWORDS and len(phrase) <= MAX_KEYWORD_CHARS and sum(map(len, longer)) <= MAX_TOTAL_CHARS:
            found = longer
    return found


def _listed(prompt: str) -> list[str]:
    """The phrases of a prompt that is a list; none of one that is prose."""
    phrases = _tidy(phrase.strip().lstrip(BULLETS) for phrase in LIST_MARKS.split(prompt))
    is_list = len(phrases) > 1 and not SENTENCE_MARKS.search(prompt)
    return list(phrases) if is_list and all(len(phrase.split()) <= MAX_LISTED_WORDS for phrase in phrases) else []


def _tidy(phrases: Iterable[str]) -> Keywords:
    return tuple(dict.fromkeys(" ".join(phrase.split()) for phrase in phrases if phrase.strip()))
