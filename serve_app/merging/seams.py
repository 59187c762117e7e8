"""The seam between two windows: two lists of tokens of the same stretch of speech become one.

The tokens of each side keep their order. A word is dropped only where the other side has a word at that time. The sides meet only
between words. Start times never go back.
"""

import math
import re
from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import merge as interleave

from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE

_MIN_TOLERANCE = 4 * FRAME_SAMPLES
"""Two windows place the same word at most this far apart, samples; people hardly repeat a word faster than that.

The tolerance grows with the overlap, because a pair is chosen among all words that both windows decoded. Say "no no no" is spoken
in an overlap. In a short one, the edges of the windows may truncate two of the three words, and a wide tolerance would pair the
first "no" of one side with the second of the other: a word is lost. In a long one, both sides have all three words, and the
pairing that fits best is the right one, even if one side places every word half a second late.
"""

_MAX_TOLERANCE = SAMPLE_RATE // 2
"""The tolerance for long overlaps, samples."""

_MAX_TWIN_TOLERANCE = SAMPLE_RATE
"""The same for a window's first or last word that differs in case or punctuation from its pair: the edge misplaces it more."""

_MIN_SPAN = 4 * FRAME_SAMPLES
"""Shortest time that a word fills, samples, if there is room."""

_PAUSE = SAMPLE_RATE // 2
"""After a pause of this length, samples, a new word begins whatever the piece."""

_NEAR_EDGE = 9 * FRAME_SAMPLES
"""A word that begins (right window) or ends (left window) this close to its window's edge, samples, may be truncated by it."""

_SLACK = 4 * FRAME_SAMPLES
"""A truncated word is a duplicate even if it misses its neighbour by this much, samples."""

_WORD_START = re.compile("[▁\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""The SentencePiece marker, or a letter of a script without spaces between words."""

_MARGINS = re.compile(r"^\W+|\W+$")
_LETTER = re.compile(r"\w")


@dataclass(frozen=True, slots=True)
class _Word:
    """The tokens of one word, and of the punctuation after it."""

    tokens: tuple[Token, ...]
    core: int
    """Number of tokens before the punctuation."""
    key: str
    """The text that is compared: case-folded, without punctuation at either end."""
    start: int
    end: int

    @property
    def text(self) -> str:
        return "".join(token.piece for token in self.tokens)


_Sides = tuple[list[_Word], list[_Word]]
"""The words of the left and of the right window."""


def merge(left: Sequence[Token], right: Sequence[Token], overlap: tuple[int, int]) -> list[Token]:
    """Join the tokens of two windows that share the samples `overlap` (half-open). All times: samples of the recording.

    It follows parakeet-mlx and FluidAudio (longest run of equal tokens at agreeing times; else longest common subsequence; else
    a cut at a word start near the middle), with two changes. It compares words, because a capital letter or an error changes
    the tokens of a word. And it is one procedure: words are paired along a common subsequence weighted by closeness in time, so
    that a run of equal words wins where there is one, and each of several repeats pairs with itself. Each pair becomes one
    word. Of the words without a pair, the one farther from its window's edge is kept, and those that overlap it are dropped,
    which amounts to a cut between words in the middle.

    Words of the right window before the overlap are dropped: there the left window has more context.
    """
    start, stop = overlap
    if start >= stop:
        return monotonic([*left, *right])
    tolerance = min(max((stop - start - SAMPLE_RATE) // 3, _MIN_TOLERANCE), _MAX_TOLERANCE)
    sides = group_words(left), _without_fragment(group_words(right))
    earliest = start - tolerance
    pairs = _paired(sides, tolerance, earliest, stop - start)
    kept = _kept_unpaired(sides, pairs, earliest, overlap)

    tokens: list[Token] = []
    i = j = 0
    for next_i, next_j in [*pairs, (len(sides[0]), len(sides[1]))]:
        ours = [sides[0][k] for k in range(i, next_i) if k in kept[0]]
        theirs = [sides[1][k] for k in range(j, next_j) if k in kept[1]]
        # Takes from the front of either list, whichever is earlier: it never changes the order within one.
        for word in interleave(ours, theirs, key=lambda word: word.start):
            tokens += word.tokens
        if next_i < len(sides[0]):
            is_last, is_first = next_i == len(sides[0]) - 1, next_j == 0
            tokens += _blended(sides[0][next_i], sides[1][next_j], (start + stop) // 2, is_last, is_first)
        i, j = next_i + 1, next_j + 1
    return monotonic(tokens)


def following(known: Sequence[Token], decoded: Sequence[Token]) -> list[Token]:
    """The words of `decoded` after those of `known`, whose end `decoded` contains again.

    Where the two differ at that end, the words of `decoded` that lie before the end of `known` are dropped.
    """
    left, right = group_words(known), _without_fragment(group_words(decoded))
    if not left or not right:
        return [token for word in right for token in word.tokens]
    pairs = _paired((left, right), _MIN_TOLERANCE, left[0].start - _MIN_TOLERANCE, 0)
    i, j = pairs[-1] if pairs else (-1, -1)
    fresh = right[j + 1 :]
    if i < len(left) - 1:
        fresh = [word for word in fresh if (word.start + word.end) // 2 >= left[-1].end]
    return [token for word in fresh for token in word.tokens]


def group_words(tokens: Sequence[Token]) -> list[_Word]:
    """Tokens as words. After a pause a word begins even without the marker, which a wrong piece has replaced there."""
    groups: list[list[Token]] = []
    for token in tokens:
        resumes = groups and token.start_sample - groups[-1][-1].end_sample > _PAUSE and _LETTER.search(token.piece)
        if not groups or resumes or _WORD_START.match(token.piece):
            groups.append([])
        groups[-1].append(token)

    words = []
    for index, group in enumerate(groups):
        core = max((k for k, token in enumerate(group, 1) if _LETTER.search(token.piece)), default=len(group))
        text = "".join(token.piece for token in group).casefold()
        # A decoder often puts the end of a token one frame after its start: a word fills the room up to the next one.
        start = group[0].start_sample
        end = max(start + _MIN_SPAN, *(token.end_sample for token in group[:core]))
        if index + 1 < len(groups):
            end = max(start, min(end, groups[index + 1][0].start_sample))
        words.append(_Word(tuple(group), core, _MARGINS.sub("", text) or text, start, end))
    return words


def _without_fragment(words: list[_Word]) -> list[_Word]:
    """Of a word that the window's start truncates, punctuation is dropped and the rest becomes a word: it must not be appended to
    the left window's last word."""
    if not words or _WORD_START.match(words[0].tokens[0].piece):
        return words
    head, *rest = words[0].tokens
    if not _LETTER.search(words[0].text):
        return words[1:]
    return [replace(words[0], tokens=(replace(head, piece="▁" + head.piece), *rest)), *words[1:]]


def _paired(sides: _Sides, tolerance: int, earliest: int, overlap: int) -> list[tuple[int, int]]:
    """Indices of the words that both sides have, in order: a heaviest common subsequence (Jacobson and Vo, 1992)."""
    left, right = sides
    twin_tolerance = max(tolerance, min(overlap // 2 - SAMPLE_RATE, _MAX_TWIN_TOLERANCE))
    places: dict[str, list[int]] = {}
    for j in reversed(range(len(right))):
        if right[j].start >= earliest:
            places.setdefault(right[j].key, []).append(j)
    # The best chains so far: each ends in a later right word than the previous one, and weighs more.
    ends: list[int] = []
    weights: list[float] = []
    chains: list[tuple[tuple[int, int], ...]] = []
    for i, word in enumerate(left):
        for j in places.get(word.key, ()):
            is_edge_twin = (j == 0 or i == len(left) - 1) and word.text != right[j].text
            apart = abs(word.start - right[j].start)
            if apart > (twin_tolerance if is_edge_twin else tolerance):
                continue
            at = bisect_left(ends, j)
            # Steep enough that pairs at the same time outweigh a longer chain that is off by one repeat.
            weight = math.exp(-apart / FRAME_SAMPLES) + (weights[at - 1] if at else 0.0)
            worse = at
            while worse < len(ends) and weights[worse] <= weight:
                worse += 1
            chains[at:worse] = [(*(chains[at - 1] if at else ()), (i, j))]
            ends[at:worse], weights[at:worse] = [j], [weight]
    return [*chains[-1]] if chains else []


def _kept_unpaired(
    sides: _Sides, pairs: list[tuple[int, int]], earliest: int, overlap: tuple[int, int]
) -> tuple[set[int], set[int]]:
    """Indices of the unpaired words to keep, each unless the other side has a word at its time.

    Words farther from the edge of their own window are more reliable and are decided first. A word near the edge is likely a
    misrecognition of an unpaired neighbour, or a truncated word, so it yields even to a word that is merely close.
    """
    start, stop = overlap
    half = (stop - start) // 2
    paired = {i for i, _ in pairs}, {j for _, j in pairs}
    unpaired = (
        {i for i in range(len(sides[0])) if i not in paired[0]},
        {j for j, word in enumerate(sides[1]) if j not in paired[1] and word.start >= earliest},
    )
    # Words in whose place the other side has an unpaired word: one of the two is a misrecognition of the other.
    matched = tuple(
        {k for k in unpaired[side] if any(_share_time(sides[side][k], sides[1 - side][n], 0) for n in unpaired[1 - side])}
        for side in (0, 1)
    )
    doubts = [(sides[0][i].end - stop, 0, i) for i in unpaired[0]]
    doubts += [(start - sides[1][j].start, 1, j) for j in unpaired[1]]
    kept: tuple[set[int], set[int]] = set(), set()
    for doubt, side, index in sorted(doubts):
        word, others = sides[side][index], sides[1 - side]
        held = paired[1 - side] | kept[1 - side]
        if -doubt < half:
            spare = {k: 0 if k in matched[1 - side] else _SLACK // 2 for k in unpaired[1 - side]}
            rivals = {k for k in spare if _share_time(word, others[k], spare[k])}
            slack = _SLACK if -doubt < _NEAR_EDGE and not rivals else 0
            if rivals & kept[1 - side] or any(_share_time(word, others[k], slack) for k in held):
                continue
        kept[side].add(index)
    return kept


def _share_time(word: _Word, other: _Word, slack: int) -> bool:
    shared = min(word.end, other.end) - max(word.start, other.start) + slack
    return 2 * shared >= min(word.end - word.start, other.end - other.start)


def _blended(left: _Word, right: _Word, middle: int, is_last: bool, is_first: bool) -> tuple[Token, ...]:
    """One word that both windows decoded, from the window with more context: before the middle, the left one.

    The first word of a window lacks left context and the last one right context. So the other window decides how a first word
    begins, and what punctuation follows a last word.
    """
    core = left if is_first or (left.start + right.start) // 2 < middle else right
    tails = left.tokens[left.core :], right.tokens[right.core :]
    is_early = all(token.start_sample < middle for tail in tails for token in tail)
    tail = tails[0] if is_early and not (is_last and tails[0]) else tails[1]
    return core.tokens[: core.core] + tail


def monotonic(tokens: Sequence[Token], floor: int = 0) -> list[Token]:
    """The same tokens in the same order, none starting before the one ahead of it or before `floor`."""
    clamped = []
    for token in tokens:
        floor = max(floor, token.start_sample)
        if token.start_sample < floor or token.end_sample < floor:
            token = replace(token, start_sample=floor, end_sample=max(floor, token.end_sample))
        clamped.append(token)
    return clamped
