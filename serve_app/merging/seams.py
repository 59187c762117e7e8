"""Merge the tokens of two overlapping windows into one list at their seam.

The tokens of each window keep their order. Within the overlap, a word is dropped only if the other window has a word at that
time. The result changes from one window to the other only between words. Start times never decrease.
"""

import math
import re
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from heapq import merge as interleave
from typing import NamedTuple

from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE

_MIN_TOLERANCE = 4 * FRAME_SAMPLES
"""Smallest tolerance, samples (0.32 s). Equal words of two windows may pair if their starts differ by at most the tolerance.

The tolerance grows with the overlap, because repeated words are ambiguous in a short overlap. Example: "no no no", one word every
0.4 s. In a short overlap, the window edges may truncate two of the three words, so that the left window has only the first "no"
and the right window only the second. A tolerance of 0.5 s would pair these two, and one word would be lost. A tolerance of 0.32 s
does not, since people hardly repeat a word faster than that. In a long overlap, all three words are decoded in both windows. The
pairs that are closest in time win, so a wide tolerance is safe, and it also pairs a word whose two times differ by half a second.
"""

_MAX_TOLERANCE = SAMPLE_RATE // 2
"""Largest tolerance, samples; it applies to overlaps of 2.5 s or more."""

_MAX_TWIN_TOLERANCE = SAMPLE_RATE
"""Largest tolerance, samples, for the first or last word of a window if its case or punctuation differs from its pair.

Such a word lacks context on one side, so its time is less exact.
"""

_MIN_SPAN = 4 * FRAME_SAMPLES
"""Minimum duration of a word, samples, unless the next word starts earlier."""

_PAUSE = SAMPLE_RATE // 2
"""After a longer pause than this, samples, a new word begins even without a word-start marker."""

_NEAR_EDGE = 9 * FRAME_SAMPLES
"""A word that starts (right window) or ends (left window) closer to the window edge than this, samples, may be truncated."""

_SLACK = 4 * FRAME_SAMPLES
"""Added to the time that a truncated word shares with a word of the other window, samples, because its own times are inexact."""

_WORD_START = re.compile("[▁\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""How the first piece of a word begins: the SentencePiece marker, or a letter of a script without spaces between words."""

_MARGINS = re.compile(r"^\W+|\W+$")
"""Punctuation and markers at either end of a word."""

_LETTER = re.compile(r"\w")
"""A letter or digit: a piece without one is punctuation."""


class _Word(NamedTuple):
    """The tokens of one word, including the punctuation after it."""

    tokens: tuple[Token, ...]
    core: int
    """Number of tokens before the punctuation."""
    key: str
    """The text for comparison: case-folded, without punctuation at either end."""
    start: int
    """Samples, on the clock of the tokens; `end` too."""
    end: int

    @property
    def text(self) -> str:
        return "".join(token.piece for token in self.tokens)


_Sides = tuple[list[_Word], list[_Word]]
"""The words of the left and of the right window."""


def merge(left: Sequence[Token], right: Sequence[Token], overlap: tuple[int, int]) -> list[Token]:
    """Merge the tokens of two windows. `overlap` is the half-open span of both windows. All times: samples of the recording.

    The algorithm follows parakeet-mlx and FluidAudio. They take the longest run of equal tokens at matching times, else the
    longest common subsequence, else a cut at a word start near the middle of the overlap. This one differs in two ways:

    - It compares words, not tokens, because a capital letter or a recognition error changes the tokens of a word.
    - One procedure replaces the three cases. Words pair along the heaviest common subsequence, in which pairs that are closer in
      time weigh more. So a run of equal words wins where there is one, and each of several repeats pairs with itself.

    Each pair becomes one word. Of unpaired words that overlap in time, the one farthest from its window's edge is kept. If no
    words pair, the result is a cut between words near the middle.

    Words of the right window before the overlap are dropped: there the left window has more context.
    """
    start, stop = overlap
    if start >= stop:
        return monotonic([*left, *right])
    tolerance = min(max((stop - start - SAMPLE_RATE) // 3, _MIN_TOLERANCE), _MAX_TOLERANCE)
    # Words that begin later neither pair nor share time with a word of the left window.
    reach = max([stop, *(token.end_sample for token in left)]) + _MAX_TWIN_TOLERANCE + _MIN_SPAN + _SLACK
    right, later = _divided(right, reach)
    sides = group_words(left), _without_fragment(group_words(right))
    earliest = start - tolerance
    pairs = _paired(sides, tolerance, earliest, stop - start)
    kept = _kept_unpaired(sides, pairs, earliest, overlap)

    tokens: list[Token] = []
    i = j = 0
    for next_i, next_j in [*pairs, (len(sides[0]), len(sides[1]))]:
        from_left = [sides[0][k] for k in range(i, next_i) if k in kept[0]]
        from_right = [sides[1][k] for k in range(j, next_j) if k in kept[1]]
        # heapq.merge, not a sort: the order within each list must not change, even where start times decrease.
        for word in interleave(from_left, from_right, key=lambda word: word.start):
            tokens += word.tokens
        if next_i < len(sides[0]):
            is_last, is_first = next_i == len(sides[0]) - 1, next_j == 0
            tokens += _blended(sides[0][next_i], sides[1][next_j], (start + stop) // 2, is_last, is_first)
        i, j = next_i + 1, next_j + 1
    return monotonic([*tokens, *later])


def following(known: Sequence[Token], decoded: Sequence[Token]) -> list[Token]:
    """The words of `decoded` that come after the last word of `known`. Both lists have times on the same clock, samples.

    The start of `decoded` repeats the end of `known`. The words after the last pair of equal words are new. If that pair is not
    the last word of `known`, the two differ there: then words whose middle lies before the end of `known` are dropped too.
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


def settled_tokens(tokens: Sequence[Token], limit: int) -> int:
    """Number of tokens before the first word that ends later than `limit`. The start times must not decrease."""
    # A word ends at the start of the next one at the latest.
    count = bisect_right(tokens, limit, key=lambda token: token.start_sample)
    first = next((k for k in range(count - 1, 0, -1) if _WORD_START.match(tokens[k].piece)), 0)
    for word in group_words(tokens[first:]):
        if word.end > limit:
            break
        first += len(word.tokens)
    return first


def _divided(tokens: Sequence[Token], limit: int) -> tuple[Sequence[Token], Sequence[Token]]:
    """The words that start until `limit`, with the one after them, and all later words."""
    count = next((k for k in range(len(tokens), 0, -1) if tokens[k - 1].start_sample <= limit), 0)
    starts = (k for k in range(count, len(tokens)) if _WORD_START.match(tokens[k].piece))
    next(starts, None)
    cut = next(starts, len(tokens))
    return tokens[:cut], tokens[cut:]


def group_words(tokens: Sequence[Token]) -> list[_Word]:
    """Group tokens into words. A word begins at a word-start marker, or after a pause, where the decoder may omit the marker."""
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
        # Decoders often end a token one frame after its start, so a word gets a minimum duration, up to the start of the next.
        start = group[0].start_sample
        end = max(start + _MIN_SPAN, *(token.end_sample for token in group[:core]))
        if index + 1 < len(groups):
            end = max(start, min(end, groups[index + 1][0].start_sample))
        words.append(_Word(tuple(group), core, _MARGINS.sub("", text) or text, start, end))
    return words


def _without_fragment(words: list[_Word]) -> list[_Word]:
    """Handle a first word without a word-start marker, which the window's start has truncated.

    Bare punctuation is dropped. Text gets a marker, so that it is not appended to the last word of the left window.
    """
    if not words or _WORD_START.match(words[0].tokens[0].piece):
        return words
    head, *rest = words[0].tokens
    if not _LETTER.search(words[0].text):
        return words[1:]
    return [words[0]._replace(tokens=(head._replace(piece="▁" + head.piece), *rest)), *words[1:]]


def _paired(sides: _Sides, tolerance: int, earliest: int, overlap: int) -> list[tuple[int, int]]:
    """Index pairs (left, right) of the words that both sides have: a heaviest common subsequence (Jacobson and Vo, 1992)."""
    left, right = sides
    twin_tolerance = max(tolerance, min(overlap // 2 - SAMPLE_RATE, _MAX_TWIN_TOLERANCE))
    places: dict[str, list[int]] = {}
    for j in reversed(range(len(right))):
        if right[j].start >= earliest:
            places.setdefault(right[j].key, []).append(j)
    # The best chains so far. Each ends at a later right word than the previous one, and has a larger weight.
    ends: list[int] = []
    weights: list[float] = []
    chains: list[tuple[tuple[int, int], ...]] = []
    for i, word in enumerate(left):
        for j in places.get(word.key, ()):
            is_edge_twin = (j == 0 or i == len(left) - 1) and word.text != right[j].text
            distance = abs(word.start - right[j].start)
            if distance > (twin_tolerance if is_edge_twin else tolerance):
                continue
            at = bisect_left(ends, j)
            # Steep, so that pairs at equal times outweigh a longer chain in which each repeat pairs with the one after it.
            weight = math.exp(-distance / FRAME_SAMPLES) + (weights[at - 1] if at else 0.0)
            worse = at
            while worse < len(ends) and weights[worse] <= weight:
                worse += 1
            chains[at:worse] = [(*(chains[at - 1] if at else ()), (i, j))]
            ends[at:worse], weights[at:worse] = [j], [weight]
    return [*chains[-1]] if chains else []


def _kept_unpaired(
    sides: _Sides, pairs: list[tuple[int, int]], earliest: int, overlap: tuple[int, int]
) -> tuple[set[int], set[int]]:
    """Indices of the unpaired words to keep. A word is dropped if a kept word of the other side shares its time.

    The words farthest from the edge of their own window are the most reliable: they are decided first, and those at least half
    the overlap away are always kept. A word near the edge may be truncated or misrecognised: it is dropped even if a word of the
    other side is only close to it.
    """
    start, stop = overlap
    half = (stop - start) // 2
    paired = {i for i, _ in pairs}, {j for _, j in pairs}
    unpaired = (
        {i for i in range(len(sides[0])) if i not in paired[0]},
        {j for j, word in enumerate(sides[1]) if j not in paired[1] and word.start >= earliest},
    )
    # Unpaired words that share their time with an unpaired word of the other side: one of the two is misrecognised.
    contested = tuple(
        {k for k in unpaired[side] if any(_share_time(sides[side][k], sides[1 - side][n], 0) for n in unpaired[1 - side])}
        for side in (0, 1)
    )
    edge_distances = [(stop - sides[0][i].end, 0, i) for i in unpaired[0]]
    edge_distances += [(sides[1][j].start - start, 1, j) for j in unpaired[1]]
    kept: tuple[set[int], set[int]] = set(), set()
    for distance, side, index in sorted(edge_distances, key=lambda item: (-item[0], *item[1:])):
        word, others = sides[side][index], sides[1 - side]
        certain = paired[1 - side] | kept[1 - side]
        if distance < half:
            slacks = {k: 0 if k in contested[1 - side] else _SLACK // 2 for k in unpaired[1 - side]}
            rivals = {k for k in slacks if _share_time(word, others[k], slacks[k])}
            slack = _SLACK if distance < _NEAR_EDGE and not rivals else 0
            if rivals & kept[1 - side] or any(_share_time(word, others[k], slack) for k in certain):
                continue
        kept[side].add(index)
    return kept


def _share_time(word: _Word, other: _Word, slack: int) -> bool:
    """Whether the two words share at least half of the shorter one; `slack`, samples, counts as shared time."""
    shared = min(word.end, other.end) - max(word.start, other.start) + slack
    return 2 * shared >= min(word.end - word.start, other.end - other.start)


def _blended(left: _Word, right: _Word, middle: int, is_last: bool, is_first: bool) -> tuple[Token, ...]:
    """One word of a pair that was decoded in both windows. It comes from the window with more context, which is the left window
    before `middle` and the right window after it.

    There are two exceptions. The first word of the right window lacks left context: its text comes from the left window. The
    last word of the left window lacks right context: if it has punctuation, the right window decides the punctuation instead.
    """
    core = left if is_first or (left.start + right.start) // 2 < middle else right
    tails = left.tokens[left.core :], right.tokens[right.core :]
    is_early = all(token.start_sample < middle for tail in tails for token in tail)
    tail = tails[0] if is_early and not (is_last and tails[0]) else tails[1]
    return core.tokens[: core.core] + tail


def monotonic(tokens: Sequence[Token], floor: int = 0) -> list[Token]:
    """The same tokens with start times that are clamped: none is less than the previous one or than `floor`, samples."""
    clamped = []
    for token in tokens:
        floor = max(floor, token.start_sample)
        if token.start_sample < floor or token.end_sample < floor:
            token = token._replace(start_sample=floor, end_sample=max(floor, token.end_sample))
        clamped.append(token)
    return clamped
