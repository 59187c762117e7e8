"""Words to subtitle cues: their lines and their times. No word is ever left out.

Of all ways to cut a text into cues within the limits, the one with the lowest cost is chosen. A cut at the end of a sentence
costs nothing, one between two words most. Cues of even length cost less than a long and a very short one. A cue too short to be
read costs more than two sentences in one cue. A long pause always cuts. Times are whole milliseconds, as in subtitle files, so
that nothing is rounded later.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from itertools import pairwise

from serve_app.output.segments import SENTENCE_ENDS
from serve_app.transcript import Segment, Word

CLAUSE_ENDS = (",", ";", ":", "—", "–", "、", "，", "；", "：")
CLOSING_MARKS = "\"'”’»)]」』）"
ABBREVIATIONS = {"mr", "mrs", "ms", "dr", "prof", "st", "vs", "mme", "mlle", "hr", "sra"}
"""Abbreviations whose full stop ends no sentence; without those that are words too, such as `No.`."""

SPACELESS = re.compile("[\u3001-\u30ff\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff01-\uff9f\U00020000-\U0003ffff]")
"""Chinese and Japanese characters: a line may end after nearly each of them."""
NEVER_FIRST = set(
    "、。，．・：；？！‥…ー〜～」』）］｝〉》】〕〟’”»,.!?:;)]}%％々ゝゞヽヾぁぃぅぇぉっゃゅょゎゕゖァィゥェォッャュョヮヵヶ"
)
NEVER_LAST = set("「『（［｛〈《【〔〝‘“«([{")

CUE_COST = 3.0
"""Cost of every cue, so that fewer are better."""

FULLNESS_COST = 6.0
"""Cost of a full cue, by the square of its fullness, so that even cues cost less than uneven ones."""

INNER_SENTENCE_COST = 4.0
"""Cost of every sentence end inside a cue."""

HASTE_COST = 8.0
"""Penalty weight for exceeding the reading speed: the cost of a cue without any time to read it."""


class _Ending(Enum):
    """Where a cut after a unit falls, with its cost between cues and between the lines of a cue."""

    SENTENCE = (0.0, 0.0)
    CLAUSE = (1.0, 0.05)
    WORD = (3.0, 0.15)

    def __init__(self, cue_cost: float, line_cost: float) -> None:
        self.cue_cost, self.line_cost = cue_cost, line_cost


@dataclass(frozen=True, slots=True)
class CueRules:
    """Limits of a cue. All values are above 0; `gap_s` may be 0."""

    max_lines: int = 2
    max_line_chars: int = 42
    """Full-width characters count as two. Only a single word that is longer makes a longer line."""
    max_cue_s: float = 6.0
    min_cue_s: float = 1.0
    """Minimum duration, where the next cue leaves room."""
    max_chars_per_s: float = 20.0
    """Reading speed, spaces included, where the next cue leaves room."""
    pause_s: float = 1.0
    """A silence of this length between two words always ends a cue."""
    gap_s: float = 0.08
    """A shorter gap between two cues would flicker, and is closed."""


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle. Times are whole milliseconds."""

    start_s: float
    end_s: float
    lines: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class _Unit:
    """Never cut: a word, or a character of a script without spaces with its punctuation."""

    text: str
    start_ms: int
    end_ms: int
    space: int
    """Spaces before it, 0 or 1."""
    width: int
    ending: _Ending = _Ending.WORD


def width(text: str) -> int:
    """Width of a text in characters; full-width ones count as two."""
    if text.isascii():
        return len(text)
    return sum(2 if unicodedata.east_asian_width(character) in "WF" else 1 for character in text)


def shape(segments: Iterable[Segment], rules: CueRules, duration_s: float = math.inf) -> list[Cue]:
    """The cues of these segments, in order. None overlaps another or ends after the recording."""
    units = _units(segments)
    groups = _grouped(units, rules)
    max_ms, gap_ms = _max_ms(rules), round(rules.gap_s * 1000)
    cues: list[Cue] = []
    free_ms = 0
    for index, group in enumerate(groups):
        start_ms = max(group[0].start_ms, free_ms)
        next_ms = groups[index + 1][0].start_ms if index + 1 < len(groups) else math.inf
        wanted_ms = max(group[-1].end_ms, start_ms + _reading_ms(_width(group), rules))
        end_ms = min(wanted_ms, start_ms + max_ms, next_ms, duration_s * 1000)
        if 0 < next_ms - end_ms < gap_ms:
            end_ms = next_ms if next_ms - start_ms <= max_ms else next_ms - gap_ms
        # Words of the same instant in different cues are shown one after the other, however briefly.
        free_ms = max(math.floor(end_ms), start_ms + 1)
        cues.append(Cue(start_ms / 1000, free_ms / 1000, _lines(group, rules)))
    return cues


def _max_ms(rules: CueRules) -> int:
    return max(1, math.floor(rules.max_cue_s * 1000))


def _reading_ms(chars: int, rules: CueRules) -> int:
    """Time to read a text of that width, at most the longest cue."""
    return min(_max_ms(rules), math.ceil(1000 * max(rules.min_cue_s, chars / rules.max_chars_per_s)))


def _units(segments: Iterable[Segment]) -> list[_Unit]:
    """All units, in order; their times never go back and never overlap."""
    units: list[_Unit] = []
    for segment in segments:
        for word in segment.words or (Word(segment.text, segment.start_s, segment.end_s, confidence=1.0),):
            units += _units_of(word)
    start_ms = 0
    for index, unit in enumerate(units):
        start_ms = max(start_ms, unit.start_ms)
        units[index] = replace(unit, start_ms=start_ms)
    for index, unit in enumerate(units):
        following = units[index + 1] if index + 1 < len(units) else None
        end_ms = max(unit.start_ms, unit.end_ms)
        units[index] = replace(
            unit,
            end_ms=min(end_ms, following.start_ms) if following else end_ms,
            ending=_ending(unit.text, following.text if following else ""),
        )
    return units


def _units_of(word: Word) -> list[_Unit]:
    """A word is one unit, unless it has spaces or its script has none; then its time is divided by width."""
    texts: list[tuple[str, int]] = []
    for part in word.text.split():
        texts += [(text, int(index == 0)) for index, text in enumerate(_divided(part))]
    start_ms, end_ms = round(word.start_s * 1000), round(word.end_s * 1000)
    whole = sum(width(text) for text, _ in texts)
    done = 0
    units = []
    for text, space in texts:
        first, done = done, done + width(text)
        first_ms, last_ms = (start_ms + (end_ms - start_ms) * chars // whole for chars in (first, done))
        units.append(_Unit(text, first_ms, last_ms, space, done - first))
    return units


def _divided(text: str) -> list[str]:
    """The text, cut wherever its script allows a line to end."""
    if not SPACELESS.search(text):
        return [text]
    pieces = [text[0]]
    for before, after in pairwise(text):
        if (
            (SPACELESS.match(before) or SPACELESS.match(after))
            and after not in NEVER_FIRST
            and before not in NEVER_LAST
            and not unicodedata.category(after).startswith("M")
        ):
            pieces.append(after)
        else:
            pieces[-1] += after
    return pieces


def _ending(text: str, following: str) -> _Ending:
    bare = text.rstrip(CLOSING_MARKS)
    if bare.endswith(SENTENCE_ENDS):
        stem = bare[:-1].casefold()
        if bare.endswith(".") and (stem in ABBREVIATIONS or (len(stem) == 1 and stem.isalpha())):
            return _Ending.WORD
        return _Ending.CLAUSE if following[:1].islower() else _Ending.SENTENCE
    return _Ending.CLAUSE if bare.endswith(CLAUSE_ENDS) else _Ending.WORD


def _width(units: Sequence[_Unit]) -> int:
    return sum(unit.space + unit.width for unit in units) - units[0].space


def _grouped(units: Sequence[_Unit], rules: CueRules) -> list[Sequence[_Unit]]:
    """The units of each cue: the cuts of lowest total cost, by dynamic programming."""
    pause_ms, max_ms, full = rules.pause_s * 1000, _max_ms(rules), rules.max_lines * rules.max_line_chars
    cost_to = [0.0] + [math.inf] * len(units)
    came_from = [0] * (len(units) + 1)
    for first, opening in enumerate(units):
        chars = -opening.space
        lines, line_chars, sentences = 1, -opening.space, 0
        for last in range(first, len(units)):
            unit = units[last]
            if last > first:
                if unit.start_ms - units[last - 1].end_ms >= pause_ms or unit.end_ms - opening.start_ms > max_ms:
                    break
                sentences += units[last - 1].ending is _Ending.SENTENCE
            chars += unit.space + unit.width
            line_chars += unit.space + unit.width
            if last > first and line_chars > rules.max_line_chars:
                lines, line_chars = lines + 1, unit.width
                if lines > rules.max_lines:
                    break
            cost = cost_to[first] + CUE_COST + FULLNESS_COST * (chars / full) ** 2 + INNER_SENTENCE_COST * sentences
            if last + 1 < len(units):
                next_ms, reading_ms = units[last + 1].start_ms, _reading_ms(chars, rules)
                cost += HASTE_COST * max(0.0, 1 - (next_ms - opening.start_ms) / reading_ms)
                cost += unit.ending.cue_cost * max(0.0, 1 - (next_ms - unit.end_ms) / pause_ms)
            if cost < cost_to[last + 1]:
                cost_to[last + 1], came_from[last + 1] = cost, first
    groups: list[Sequence[_Unit]] = []
    end = len(units)
    while end:
        groups.append(units[came_from[end] : end])
        end = came_from[end]
    return groups[::-1]


def _lines(units: Sequence[_Unit], rules: CueRules) -> tuple[str, ...]:
    """As few lines as possible, about equally long, preferably ending with a clause."""
    # By number of units in the lines so far: the lowest cost, and where the lines end.
    reached: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    while len(units) not in reached:
        further: dict[int, tuple[float, tuple[int, ...]]] = {}
        for first, (cost_before, ends) in reached.items():
            chars = -units[first].space
            for last in range(first, len(units)):
                chars += units[last].space + units[last].width
                if last > first and chars > rules.max_line_chars:
                    break
                cost = cost_before + (chars / rules.max_line_chars) ** 2 + units[last].ending.line_cost
                if last + 1 not in further or cost < further[last + 1][0]:
                    further[last + 1] = (cost, (*ends, last + 1))
        reached = further
    _, ends = reached[len(units)]
    return tuple(_text(units[first:end]) for first, end in pairwise((0, *ends)))


def _text(units: Sequence[_Unit]) -> str:
    return "".join(" " * unit.space + unit.text for unit in units).lstrip(" ")
