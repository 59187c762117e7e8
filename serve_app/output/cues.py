"""Divide words into subtitle cues, with lines and times. Every word is kept.

Dynamic programming finds the division with the lowest total cost within the limits of CueRules, as Knuth and Plass break
paragraphs into lines (1981). The costs prefer

- few cues, of similar length;
- cuts after a sentence to cuts after a clause, and these to cuts between other words;
- one sentence per cue, unless that cue would be too short to read.

A long pause and a change of speaker always end a cue. All times are whole milliseconds, the precision of subtitle files, so that
writing them needs no rounding.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache, partial
from itertools import accumulate, pairwise
from typing import NamedTuple

from serve_app.output.scripts import divide, width
from serve_app.output.segments import SENTENCE_ENDS
from serve_app.transcript import Segment, Word

CLAUSE_ENDS = (",", ";", ":", "—", "–", "、", "，", "；", "：")
"""A word that ends with one of these ends a clause."""

CLOSING_MARKS = "\"'”’»)]」』）"
"""Quotation marks and brackets that may follow the punctuation at the end of a sentence or clause."""

ABBREVIATIONS = {"mr", "mrs", "ms", "dr", "prof", "st", "vs", "mme", "mlle", "hr", "sra"}
"""Abbreviations whose full stop does not end a sentence, in lower case. Without those that are also words, such as `No.`."""

CUE_COST = 3.0
"""Cost of each cue, so that fewer cues are preferred."""

FULLNESS_COST = 6.0
"""Multiplied by the square of a cue's characters / maximum characters, so that cues of similar length are preferred."""

INNER_SENTENCE_COST = 4.0
"""Cost of each sentence end inside a cue."""

READING_SPEED_COST = 8.0
"""Penalty weight for exceeding the reading speed: multiplied by the missing fraction of the time that reading the cue takes."""

MAX_CUE_UNITS = 150
"""Maximum units of a cue: the words of a minute, which is the longest cue. It bounds the work for words without duration, which
no maximum duration of a cue separates."""


class _Ending(Enum):
    """What ends with a unit, with the cost of a cut after it: between two cues, and between two lines of a cue."""

    SENTENCE = (0.0, 0.0)
    CLAUSE = (1.0, 0.05)
    WORD = (3.0, 0.15)

    def __init__(self, cue_cost: float, line_cost: float) -> None:
        self.cue_cost, self.line_cost = cue_cost, line_cost


@dataclass(frozen=True, slots=True)
class CueRules:
    """Limits of a cue. All values are greater than 0, except that `gap_s` may be 0."""

    max_lines: int = 2
    max_line_chars: int = 42
    """A full-width character counts as two. Only a line of a single word may be longer."""
    max_cue_s: float = 6.0
    min_cue_s: float = 1.0
    """Minimum duration; shorter only if the next cue starts earlier."""
    max_chars_per_s: float = 20.0
    """Maximum reading speed, spaces included; exceeded if the next cue starts too early or `max_cue_s` is too short."""
    pause_s: float = 1.0
    """A pause of at least this length between two words always ends a cue."""
    gap_s: float = 0.08
    """Minimum gap between two cues. A shorter gap would flicker: it is closed, or widened if `max_cue_s` prevents that."""


@dataclass(frozen=True, slots=True)
class Cue:
    """One subtitle. Times are whole milliseconds."""

    start_s: float
    end_s: float
    lines: tuple[str, ...]
    channel: int | None = None
    speaker: str | None = None


class _Unit(NamedTuple):
    """The smallest piece that is never divided: a word, or in a script without spaces a character with its punctuation."""

    text: str
    start_ms: int
    end_ms: int
    space: int
    """Number of spaces in front of the text, 0 or 1."""
    width: int
    """Without the space; a full-width character counts as two."""
    speaker: str | None = None
    ending: _Ending = _Ending.WORD


def shape(
    segments: Iterable[Segment],
    rules: CueRules,
    duration_s: float = math.inf,
    checkpoint: Callable[[], None] = lambda: None,
) -> list[Cue]:
    """Divide segments into cues, in order. The cues do not overlap.

    A segment without words is divided by its text, its duration in proportion to the characters. `duration_s` is the length of
    the recording; a cue that would end later is shortened. `checkpoint` is called often; it may raise, to end the work.
    """
    units = _units(segments, checkpoint)
    groups = _group(units, rules, checkpoint)
    max_ms, gap_ms = _max_ms(rules), round(rules.gap_s * 1000)
    cues: list[Cue] = []
    free_ms = 0
    for index, group in enumerate(groups):
        checkpoint()
        start_ms = max(group[0].start_ms, free_ms)
        next_ms = groups[index + 1][0].start_ms if index + 1 < len(groups) else math.inf
        wanted_ms = max(group[-1].end_ms, start_ms + _reading_ms(_width(group), rules))
        end_ms = min(wanted_ms, start_ms + max_ms, next_ms, duration_s * 1000)
        if 0 < next_ms - end_ms < gap_ms:
            end_ms = next_ms if next_ms - start_ms <= max_ms else next_ms - gap_ms
        # Every cue lasts at least 1 ms, so that cues whose words have the same time follow one another.
        free_ms = max(math.floor(end_ms), start_ms + 1)
        cues.append(Cue(start_ms / 1000, free_ms / 1000, _lines(group, rules), speaker=group[0].speaker))
    return cues


def _max_ms(rules: CueRules) -> int:
    return max(1, math.floor(rules.max_cue_s * 1000))


def _reading_ms(chars: int, rules: CueRules) -> int:
    """Time to read a text of this width, milliseconds; at most the maximum duration of a cue."""
    return min(_max_ms(rules), math.ceil(1000 * max(rules.min_cue_s, chars / rules.max_chars_per_s)))


def _units(segments: Iterable[Segment], checkpoint: Callable[[], None]) -> list[_Unit]:
    """All units in order. Their times are corrected to ascend without overlaps."""
    units: list[_Unit] = []
    for segment in segments:
        checkpoint()
        for word in segment.words or (Word(segment.text, segment.start_s, segment.end_s, confidence=1.0),):
            units += _units_of(word, segment.speaker)
    if not units:
        return []
    starts_ms = list(accumulate((max(0, unit.start_ms) for unit in units), max))
    next_starts_ms, next_texts = [*starts_ms[1:], math.inf], [*(unit.text for unit in units[1:]), ""]
    return [
        _Unit(text, start_ms, int(min(max(start_ms, end_ms), next_start_ms)), space, chars, speaker, _ending(text, next_text))
        for (text, _, end_ms, space, chars, speaker, _), start_ms, next_start_ms, next_text in zip(
            units, starts_ms, next_starts_ms, next_texts, strict=True
        )
    ]


def _units_of(word: Word, speaker: str | None) -> list[_Unit]:
    """The units of one word: several if it contains spaces or its script has none. They share its duration by their widths."""
    texts: list[tuple[str, int]] = []
    for part in word.text.split():
        texts += [(text, int(index == 0)) for index, text in enumerate(divide(part))]
    start_ms, end_ms = round(word.start_s * 1000), round(word.end_s * 1000)
    total_chars = sum(width(text) for text, _ in texts)
    chars = 0
    units = []
    for text, space in texts:
        unit_start_ms = start_ms + (end_ms - start_ms) * chars // total_chars
        chars += width(text)
        unit_end_ms = start_ms + (end_ms - start_ms) * chars // total_chars
        units.append(_Unit(text, unit_start_ms, unit_end_ms, space, width(text), speaker))
    return units


def _ending(text: str, following: str) -> _Ending:
    """What ends with `text`. The end of a sentence counts as the end of a clause if a lower-case letter follows."""
    bare = text.rstrip(CLOSING_MARKS)
    if bare.endswith(SENTENCE_ENDS):
        stem = bare[:-1].casefold()
        if bare.endswith(".") and (stem in ABBREVIATIONS or (len(stem) == 1 and stem.isalpha())):
            return _Ending.WORD
        return _Ending.CLAUSE if following[:1].islower() else _Ending.SENTENCE
    return _Ending.CLAUSE if bare.endswith(CLAUSE_ENDS) else _Ending.WORD


def _width(units: Sequence[_Unit]) -> int:
    return sum(unit.space + unit.width for unit in units) - units[0].space


def _group(units: Sequence[_Unit], rules: CueRules, checkpoint: Callable[[], None]) -> list[Sequence[_Unit]]:
    """The units of each cue, divided at the lowest total cost.

    `cost_to[n]` is the lowest cost of the first n units as complete cues; the last of these cues starts at unit `came_from[n]`.
    """
    pause_ms, max_ms, max_chars = rules.pause_s * 1000, _max_ms(rules), rules.max_lines * rules.max_line_chars
    reading_ms = cache(partial(_reading_ms, rules=rules))
    # The last cue may end anywhere, and its reader has all the time.
    next_starts_ms = [*(unit.start_ms for unit in units[1:]), math.inf] if units else []
    cut_costs = [
        unit.ending.cue_cost * max(0.0, 1 - (next_ms - unit.end_ms) / pause_ms)
        for unit, next_ms in zip(units, next_starts_ms, strict=True)
    ]
    cost_to = [0.0] + [math.inf] * len(units)
    came_from = [0] * (len(units) + 1)
    for first, opening in enumerate(units):
        checkpoint()
        opening_ms, cost_before = opening.start_ms, cost_to[first] + CUE_COST
        chars = line_chars = -opening.space
        lines, sentences = 1, 0
        for last in range(first, min(first + MAX_CUE_UNITS, len(units))):
            unit, next_ms = units[last], next_starts_ms[last]
            if last > first:
                previous = units[last - 1]
                if (
                    unit.start_ms - previous.end_ms >= pause_ms
                    or unit.end_ms - opening_ms > max_ms
                    or unit.speaker != opening.speaker
                ):
                    break
                sentences += previous.ending is _Ending.SENTENCE
            chars += unit.space + unit.width
            line_chars += unit.space + unit.width
            if last > first and line_chars > rules.max_line_chars:
                lines, line_chars = lines + 1, unit.width
                if lines > rules.max_lines:
                    break
            cost = cost_before + FULLNESS_COST * (chars / max_chars) ** 2 + INNER_SENTENCE_COST * sentences + cut_costs[last]
            missing = 1 - (next_ms - opening_ms) / reading_ms(chars)
            if missing > 0:
                cost += READING_SPEED_COST * missing
            if cost < cost_to[last + 1]:
                cost_to[last + 1], came_from[last + 1] = cost, first
    groups: list[Sequence[_Unit]] = []
    end = len(units)
    while end:
        groups.append(units[came_from[end] : end])
        end = came_from[end]
    return groups[::-1]


def _lines(units: Sequence[_Unit], rules: CueRules) -> tuple[str, ...]:
    """Divide a cue into as few lines as possible: of similar length, preferably cut after a clause."""
    # For each number of units that n lines can hold: the lowest cost, and the index after the last unit of each line.
    reached: dict[int, tuple[float, tuple[int, ...]]] = {0: (0.0, ())}
    while len(units) not in reached:
        with_next_line: dict[int, tuple[float, tuple[int, ...]]] = {}
        for first, (previous_cost, ends) in reached.items():
            chars = -units[first].space
            for last in range(first, len(units)):
                chars += units[last].space + units[last].width
                if last > first and chars > rules.max_line_chars:
                    break
                cost = previous_cost + (chars / rules.max_line_chars) ** 2 + units[last].ending.line_cost
                if last + 1 not in with_next_line or cost < with_next_line[last + 1][0]:
                    with_next_line[last + 1] = (cost, (*ends, last + 1))
        reached = with_next_line
    _, ends = reached[len(units)]
    return tuple(_text(units[first:end]) for first, end in pairwise((0, *ends)))


def _text(units: Sequence[_Unit]) -> str:
    return "".join(" " * unit.space + unit.text for unit in units).lstrip(" ")
