"""Stages 2 and 4: cut a recording into overlapping windows, and join the tokens of the windows again.

In: 16 kHz mono int16 blocks of any size; later each window's tokens in recording time. Out: `Window`s; one token list.

Plan: every sample lies in a window; windows start on the frame grid and are never longer than asked; neighbours share
at least the overlap; no window lies within another; how the audio came in blocks makes no difference; memory is about
one window and a block.
Merge: each side's tokens keep their order; a word is dropped only where the other side holds something at that time;
the two sides meet only between words; start times never go back.
"""

import math
import re
import sys
from bisect import bisect_left
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from heapq import merge as interleave

import numpy as np

from serve_app.transcript import FRAME_SAMPLES, SAMPLE_RATE, Samples, Token, Window

_HALF_FRAME = FRAME_SAMPLES // 2
_SEARCH_FRAMES = SAMPLE_RATE // FRAME_SAMPLES
"""How far a cut may move to either side of the planned one, frames (0.96 s)."""

# In samples. Two windows place a word a few frames apart, and people hardly repeat one faster than that. Longer
# overlaps allow more: not all the repeats that would tell a word from the next are spoilt by the edges.
_MIN_TOLERANCE = 3 * FRAME_SAMPLES
_MAX_TOLERANCE = SAMPLE_RATE // 2
_MAX_TWIN_TOLERANCE = SAMPLE_RATE
_SETTLED = 2 * SAMPLE_RATE
"""A word that ends this long before the next overlap is beyond every rule of `merge`."""
_MIN_SPAN = 4 * FRAME_SAMPLES
"""Shortest time that a word is taken to fill, if there is room."""
_PAUSE = SAMPLE_RATE // 2
_NEAR_EDGE = 9 * FRAME_SAMPLES
"""A word may be the shred of a longer one if it begins (right) or ends (left) this close to its window's edge."""
_SLACK = 4 * FRAME_SAMPLES

_WORD_START = re.compile("[▁\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""The SentencePiece marker, or a letter of a script that puts no spaces between words."""
_MARGINS = re.compile(r"^\W+|\W+$")
_LETTER = re.compile(r"\w")


def _overlap_frames(overlap_s: float) -> int:
    return math.ceil(overlap_s * SAMPLE_RATE / FRAME_SAMPLES - 1e-6)


class Planner:
    """Cuts a stream into windows of at most `window_s` seconds that share `overlap_s`, rounded up to frames of 80 ms.

    The middle of an overlap is the quietest point within about a second of the planned one: there the seam will be. The
    last window begins early, in audio that its predecessor has too, rather than be short.
    """

    def __init__(self, window_s: float, overlap_s: float) -> None:
        self._window = int(window_s * SAMPLE_RATE + 1e-6)
        self._overlap_frames = _overlap_frames(overlap_s)
        # A step leads from one start to the next, frames. It is at least half the longest, so that narrow windows get
        # on, and at least the overlap, so that no stretch lies in three windows (but the last one reaches back).
        longest = self._window // FRAME_SAMPLES - self._overlap_frames
        if not 0 <= overlap_s <= window_s / 2 or longest < 1:
            raise ValueError("overlap_s must be from 0 to half of window_s, and window_s longer than a frame")
        self._planned_step = longest - min(_SEARCH_FRAMES, longest // 4)
        search = longest - self._planned_step
        self._steps = range(max(1, self._planned_step - search, min(self._overlap_frames, longest)), longest + 1)
        self._blocks: deque[Samples] = deque()
        self._first = 0  # sample at which the oldest block still held begins
        self._total = 0
        self._start = 0  # sample at which the next window begins
        self._index = 0

    def push(self, block: Samples) -> list[Window]:
        """Take int16 [samples]; give the windows that later audio cannot change."""
        self._blocks.append(block.copy())
        self._total += len(block)
        windows = []
        while self._total - self._start > self._window:
            following = self._start + self._quietest_step() * FRAME_SAMPLES
            windows.append(self._take(self._start, following + self._overlap_frames * FRAME_SAMPLES))
            self._start = following
        needed = min(self._start, self._total - self._window)
        while self._blocks and self._first + len(self._blocks[0]) <= needed:
            self._first += len(self._blocks.popleft())
        return windows

    def finish(self) -> list[Window]:
        """Give what is left once the audio has ended: one window, or none if there was no audio. Call it once."""
        if not self._total:
            return []
        earliest = max(0, self._total - self._window)
        return [self._take(math.ceil(earliest / FRAME_SAMPLES) * FRAME_SAMPLES, self._total)]

    def _take(self, start: int, stop: int) -> Window:
        self._index += 1
        return Window(self._index - 1, start, self._read(start, stop))

    def _read(self, start: int, stop: int) -> Samples:
        pieces, first = [], self._first
        for block in self._blocks:
            if first < stop and first + len(block) > start:
                pieces.append(block[max(0, start - first) : stop - first])
            first += len(block)
        return np.concatenate(pieces)

    def _quietest_step(self) -> int:
        """Frames to the next start for which 80 ms, and then 480 ms, about the overlap's middle are quietest."""
        audio = self._read(self._start, self._start + self._window)
        halves = audio[: len(audio) // _HALF_FRAME * _HALF_FRAME].reshape(-1, _HALF_FRAME)
        power = np.square(halves.astype(np.float32)).mean(axis=1)

        def loudness(step: int) -> tuple[float, int]:
            middle = 2 * step + self._overlap_frames
            near, around = power[middle - 1 : middle + 1], power[max(0, middle - 3) : middle + 3]
            return float(near.mean() + around.mean()), abs(step - self._planned_step)

        return min(self._steps, key=loudness)


@dataclass(frozen=True, slots=True)
class _Word:
    """Tokens that belong together: what begins a word, what continues it, and the punctuation behind it."""

    tokens: tuple[Token, ...]
    core: int
    """How many of the tokens come before the punctuation at the end."""
    key: str
    """What is compared: case-folded, without punctuation at either end."""
    start: int
    end: int

    @property
    def text(self) -> str:
        return "".join(token.piece for token in self.tokens)


_Sides = tuple[list[_Word], list[_Word]]
"""The words of the left and of the right window."""


def merge(left: Sequence[Token], right: Sequence[Token], overlap: tuple[int, int]) -> list[Token]:
    """Join the tokens of two windows that share the samples `overlap` (half-open). All times: samples of the recording.

    The ladder of parakeet-mlx and FluidAudio (longest run of equal tokens at agreeing times; else longest common
    subsequence; else a cut at a word start near the middle), with two changes. It works on words, since a capital or an
    error changes the tokens of a word. And it is one procedure: words pair up along a common subsequence weighted by
    closeness in time, so that a run of equal words wins where there is one and repeats of one word pair each with
    itself; each pair gives one word. Of words without a pair, the one farther from its window's edge stands and what
    overlaps it falls, which amounts to a cut in the middle between words.

    Right words before the overlap are left out: there the left window stands.
    """
    start, stop = overlap
    if start >= stop:
        return _monotonic([*left, *right])
    tolerance = min(max((stop - start - SAMPLE_RATE) // 3, _MIN_TOLERANCE), _MAX_TOLERANCE)
    sides = _words(left), _without_fragment(_words(right))
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
    return _monotonic(tokens)


class Merger:
    """Joins the token lists of windows that arrive in order; lets tokens go once no later window can change them.

    Given the planner's `overlap_s`, tokens are final up to two seconds before the next overlap; where the last window
    reaches farther back, its predecessor stands. Without it, all that two windows share is compared, and a window's
    tokens are held until the next one has come.
    """

    def __init__(self, overlap_s: float = math.inf) -> None:
        self._reach = sys.maxsize if math.isinf(overlap_s) else _overlap_frames(overlap_s) * FRAME_SAMPLES
        self._pending: list[Token] = []
        self._end = 0
        self._floor = 0

    def add(self, window_start: int, window_end: int, tokens: Sequence[Token]) -> list[Token]:
        """Take the next window's tokens; give those now final. Span (half-open) and times: samples of the recording."""
        merged = merge(self._pending, tokens, (max(window_start, self._end - self._reach), self._end))
        self._end = window_end
        settled = max(window_start, window_end - self._reach) - _SETTLED
        count = 0
        for word in _words(merged):
            if word.end > settled:
                break
            count += len(word.tokens)
        self._pending = merged[count:]
        return self._released(merged[:count])

    def finish(self) -> list[Token]:
        """Give the tokens still held."""
        tokens, self._pending = self._pending, []
        return self._released(tokens)

    def _released(self, tokens: list[Token]) -> list[Token]:
        tokens = _monotonic(tokens, self._floor)
        self._floor = tokens[-1].start_sample if tokens else self._floor
        return tokens


def _words(tokens: Sequence[Token]) -> list[_Word]:
    """Group tokens. After a pause a word begins even without the marker: there a wrong piece has taken its place."""
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
        # A decoder's end times are where it went on, often one frame after the start: a word fills the room it has.
        start = group[0].start_sample
        end = max(start + _MIN_SPAN, *(token.end_sample for token in group[:core]))
        if index + 1 < len(groups):
            end = max(start, min(end, groups[index + 1][0].start_sample))
        words.append(_Word(tuple(group), core, _MARGINS.sub("", text) or text, start, end))
    return words


def _without_fragment(words: list[_Word]) -> list[_Word]:
    """A window that begins inside a word must not glue the rest of it, or a full stop, to the left window's word."""
    if not words or _WORD_START.match(words[0].tokens[0].piece):
        return words
    head, *rest = words[0].tokens
    if not _LETTER.search(words[0].text):
        return words[1:]
    return [replace(words[0], tokens=(replace(head, piece="▁" + head.piece), *rest)), *words[1:]]


def _paired(sides: _Sides, tolerance: int, earliest: int, overlap: int) -> list[tuple[int, int]]:
    """Indices of words that are the same in both, in order: a heaviest common subsequence (Jacobson and Vo, 1992)."""
    left, right = sides
    twin_tolerance = max(tolerance, min(overlap // 2 - SAMPLE_RATE, _MAX_TWIN_TOLERANCE))
    places: dict[str, list[int]] = {}
    for j in reversed(range(len(right))):
        if right[j].start >= earliest:
            places.setdefault(right[j].key, []).append(j)
    # The best chains found so far: each ends in a later right word than the one before it, and weighs more.
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
            # So steep that pairs at the same time outweigh a longer chain that is off by one repeat.
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
    """Indices of the unpaired words to keep: the most trusted first, each unless the other side already fills its time.

    Trust is the distance to the edge of the word's own window. Words with little of it are likely a mishearing of an
    unpaired neighbour, or next to the edge a shred of any neighbour, so they yield even to one that is merely close.
    """
    start, stop = overlap
    half = (stop - start) // 2
    paired = {i for i, _ in pairs}, {j for _, j in pairs}
    unpaired = (
        {i for i in range(len(sides[0])) if i not in paired[0]},
        {j for j, word in enumerate(sides[1]) if j not in paired[1] and word.start >= earliest},
    )
    doubts = [(sides[0][i].end - stop, 0, i) for i in unpaired[0]]
    doubts += [(start - sides[1][j].start, 1, j) for j in unpaired[1]]
    kept: tuple[set[int], set[int]] = set(), set()
    for doubt, side, index in sorted(doubts):
        word, others = sides[side][index], sides[1 - side]
        held = paired[1 - side] | kept[1 - side]
        if -doubt < half:
            rivals = {k for k in unpaired[1 - side] if _share_time(word, others[k], _SLACK // 2)}
            slack = _SLACK if -doubt < _NEAR_EDGE and not rivals else 0
            if rivals & kept[1 - side] or any(_share_time(word, others[k], slack) for k in held):
                continue
        kept[side].add(index)
    return kept


def _share_time(word: _Word, other: _Word, slack: int) -> bool:
    shared = min(word.end, other.end) - max(word.start, other.start) + slack
    return 2 * shared >= min(word.end - word.start, other.end - other.start)


def _blended(left: _Word, right: _Word, middle: int, is_last: bool, is_first: bool) -> tuple[Token, ...]:
    """One word that both windows heard, from the one with more context: before the middle, the left.

    How a word begins depends on what came before it, of which a window's first word has nothing, and its punctuation on
    what comes after, of which a window's last word has nothing: there the other window decides.
    """
    core = left if is_first or (left.start + right.start) // 2 < middle else right
    tails = left.tokens[left.core :], right.tokens[right.core :]
    is_early = all(token.start_sample < middle for tail in tails for token in tail)
    tail = tails[0] if is_early and not (is_last and tails[0]) else tails[1]
    return core.tokens[: core.core] + tail


def _monotonic(tokens: Sequence[Token], floor: int = 0) -> list[Token]:
    """The same tokens in the same order, none starting before the one ahead of it or before `floor`."""
    clamped = []
    for token in tokens:
        floor = max(floor, token.start_sample)
        if token.start_sample < floor or token.end_sample < floor:
            token = replace(token, start_sample=floor, end_sample=max(floor, token.end_sample))
        clamped.append(token)
    return clamped
