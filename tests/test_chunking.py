"""`serve_app.chunking`: a plan loses no sample, and merging returns every spoken word exactly once."""

import math
import random
import tracemalloc
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.chunking import Merger, Planner
from serve_app.merging.seams import merge
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples, Window

JITTER = FRAME_SAMPLES
"""Maximum difference between the time of a token in one window and its true time, samples (80 ms)."""

# Derandomised: every run has the same examples, so a new failure is caused by a change of the code.
quick = settings(deadline=None, max_examples=60, derandomize=True, suppress_health_check=[HealthCheck.too_slow])
thorough = settings(quick, max_examples=250)


def at(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


# --- plan ---------------------------------------------------------------------------------------------------


def plan(audio: Samples, window_s: float, overlap_s: float, blocks: list[int] | None = None) -> list[Window]:
    planner = Planner(window_s, overlap_s)
    windows, rest = [], audio
    for size in blocks or []:
        windows += planner.push(rest[:size])
        rest = rest[size:]
    return windows + planner.push(rest) + planner.finish()


def speech(length: int, seed: int, silences: int) -> Samples:
    """int16 [length] of noise with `silences` stretches of digital or near silence."""
    generator = np.random.default_rng(seed)
    audio = generator.normal(0, 3000, length)
    for _ in range(silences):
        start = int(generator.integers(0, max(1, length)))
        audio[start : start + int(generator.integers(100, at(3)))] *= generator.choice([0.0, 0.01])
    return audio.astype(np.int16)


@st.composite
def window_settings(
    draw: st.DrawFn, min_s: float = 2, max_s: float = 9, min_overlap_s: float = 0, max_overlap_s: float = 4.5
) -> tuple[float, float]:
    window_s = draw(st.floats(min_s, max_s))
    return window_s, draw(st.floats(min_overlap_s, min(max_overlap_s, window_s / 2)))


@thorough
@given(window_settings(), st.integers(0, at(30)), st.integers(0, 2**32), st.integers(0, 12), st.data())
def test_plan_covers_every_sample_within_its_limits(
    sizes: tuple[float, float], length: int, seed: int, silences: int, data: st.DataObject
) -> None:
    window_s, overlap_s = sizes
    audio = speech(length, seed, silences)
    windows = plan(audio, window_s, overlap_s)

    assert [window.index for window in windows] == list(range(len(windows)))
    assert len(windows) == (0 if length == 0 else 1) or length > int(window_s * SAMPLE_RATE)
    for window in windows:
        assert window.start_sample % FRAME_SAMPLES == 0
        assert 0 < len(window.samples) <= window_s * SAMPLE_RATE
        assert window.samples.dtype == np.int16
        assert np.array_equal(window.samples, audio[window.start_sample : window.end_sample])
    assert (windows[0].start_sample, windows[-1].end_sample) == (0, length) if windows else length == 0
    for before, after in pairwise(windows):
        assert before.start_sample < after.start_sample
        assert before.end_sample < after.end_sample
        assert before.end_sample - after.start_sample >= overlap_s * SAMPLE_RATE - 1e-3
    for before, after in pairwise(windows[:-1]):
        assert before.end_sample - after.start_sample < overlap_s * SAMPLE_RATE + FRAME_SAMPLES
    for before, after in zip(windows[:-2], windows[2:-1], strict=False):
        assert after.start_sample >= before.end_sample - 2 * FRAME_SAMPLES
    if len(windows) > 1:
        assert len(windows[-1].samples) > window_s * SAMPLE_RATE - FRAME_SAMPLES - 1

    blocks = data.draw(st.lists(st.integers(0, at(12)) | st.integers(0, 50), max_size=12))
    again = plan(audio, window_s, overlap_s, blocks)
    assert len(again) == len(windows)
    for one, other in zip(windows, again, strict=True):
        assert (one.index, one.start_sample) == (other.index, other.start_sample)
        assert np.array_equal(one.samples, other.samples)


@quick
@given(st.floats(-0.85, 0.85), st.floats(2, 4), st.sampled_from([0.0, 0.03]))
def test_middle_of_overlap_moves_into_a_nearby_pause(offset_s: float, overlap_s: float, level: float) -> None:
    audio = np.random.default_rng(1).normal(0, 3000, at(40))
    steady = plan(np.full(at(40), 100, np.int16), 20, overlap_s)
    planned = (steady[1].start_sample + steady[0].end_sample) // 2
    pause = planned + at(offset_s)
    audio[pause - at(0.15) : pause + at(0.15)] *= level
    first, second, *_ = plan(audio.astype(np.int16), 20, overlap_s)
    assert abs((second.start_sample + first.end_sample) // 2 - pause) <= at(0.1)


def test_planner_returns_a_window_as_soon_as_it_is_complete() -> None:
    planner = Planner(4.0, 1.0)
    assert planner.push(np.ones(at(4), np.int16)) == []
    assert len(planner.push(np.ones(1, np.int16))) == 1


def test_planner_keeps_no_reference_to_the_caller_s_block() -> None:
    planner, block = Planner(4.0, 1.0), np.ones(at(1), np.int16)
    planner.push(block)
    block[:] = 7
    assert set(planner.finish()[0].samples) == {1}


def test_planner_memory_does_not_grow_with_the_recording() -> None:
    planner, block = Planner(8.0, 2.0), np.ones(at(0.1), np.int16)
    tracemalloc.start()
    try:
        for _ in range(3000):
            planner.push(block)
        held, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert held < 2 * at(8.0) * 2
    assert peak < 12 * at(8.0) * 2


@pytest.mark.parametrize(("window_s", "overlap_s"), [(4, 2.5), (4, -1), (0.01, 0), (4, 4)])
def test_planner_rejects_sizes_with_which_windows_cannot_advance(window_s: float, overlap_s: float) -> None:
    with pytest.raises(ValueError, match="overlap_s"):
        Planner(window_s, overlap_s)


@pytest.mark.parametrize(("window_s", "overlap_s"), [(2, 1), (5, 2.5), (2, 0.5), (32, 2), (600, 300), (30.5, 0.5)])
def test_planner_accepts_all_sizes_that_the_settings_allow(window_s: float, overlap_s: float) -> None:
    Planner(window_s, overlap_s)


# --- merge: the tokens that a recogniser would return for each window of a known recording -------------------

SPOKEN = {
    "seven": (("▁s", "eve", "n"), ("▁", "S", "eve", "n")),
    "four": (("▁four",), ("▁F", "our")),
    "two": (("▁t", "wo"), ("▁T", "wo")),
    "eight": (("▁e", "ight"), ("▁", "E", "i", "ght")),
    "it's": (("▁it", "'s"), ("▁It", "'", "s")),
    "nine": (("▁n", "ine"), ("▁N", "ine")),
}
"""Pieces of each word, in lower case and with a capital letter."""


@dataclass(frozen=True)
class Said:
    """A word of the recording with its true half-open span in samples; `stop`: a full stop follows."""

    word: str
    stop: bool
    start: int
    end: int

    def tokens(self, *, capital: bool = False, stop: bool | None = None) -> list[Token]:
        pieces = SPOKEN[self.word][capital]
        step = (self.end - self.start) // len(pieces)
        tokens = [token(p, self.start + k * step, self.start + (k + 1) * step) for k, p in enumerate(pieces)]
        return tokens + [token(".", self.end, self.end)] * (self.stop if stop is None else stop)


def token(piece: str, start: int, end: int) -> Token:
    return Token(piece, sum(map(ord, piece)) % 1000, start, end, 0.9)


def say(length: int, words: list[str], pause_s: tuple[float, float], seed: int) -> list[Said]:
    """Random words that fill `length` samples. A few pauses are twenty times as long. A repeat starts at least 0.4 s later."""
    rng = random.Random(seed)
    said: list[Said] = []
    now = at(rng.uniform(0, 0.5))
    while True:
        is_repeat = len(words) < 3 or rng.random() < 0.2
        word = rng.choice(words if is_repeat or not said else [w for w in words if w != said[-1].word])
        span = at(rng.uniform(0.25, 0.5))
        if said and word == said[-1].word:
            now = max(now, said[-1].start + at(0.4))
        if now + span > length:
            return said
        said.append(Said(word, rng.random() < 0.15, now, now + span))
        now += span + at(rng.uniform(*pause_s)) + at(rng.choice([0, 0, 0, 0, 0, 0, pause_s[1] * 20]))


def audio_of(said: list[Said], length: int) -> Samples:
    audio = np.random.default_rng(0).normal(0, 1, length)
    for word in said:
        audio[word.start : word.end] *= 3000
    return audio.astype(np.int16)


def simulate(
    windows: list[Window], k: int, said: list[Said], overlap: int, rng: random.Random, jitter: int = JITTER
) -> list[Token]:
    """The tokens of window `k`: the words within it, with the errors that window edges cause.

    Times differ from the true ones by up to `jitter` samples. A false full stop may follow the last word if that word starts in
    the overlap of `overlap` samples.
    """
    window = windows[k]
    whole = [word for word in said if word.start >= window.start_sample and word.end <= window.end_sample]
    cut_first = [word for word in said if word.start < window.start_sample < word.end]
    cut_last = [word for word in said if word.start < window.end_sample < word.end]

    tokens = truncated(cut_first, window, rng)
    for word in whole:
        is_first, is_last = word is whole[0] and not tokens, word is whole[-1]
        capital = is_first and k > 0 and decodes_well(windows[k - 1], word, said, first=False)
        stop = word.stop or (
            is_last
            and not cut_last
            and k + 1 < len(windows)
            and word.start >= window.end_sample - overlap
            and decodes_well(windows[k + 1], word, said, last=False)
        )
        decoded = word.tokens(capital=capital and rng.random() < 0.8, stop=stop and (word.stop or rng.random() < 0.8))
        if (k > 0 and touches(word.start, window.start_sample)) or (
            k + 1 < len(windows) and touches(word.end, window.end_sample)
        ):
            decoded = with_one_error(decoded, rng)
        tokens += decoded
    tokens += truncated(cut_last, window, rng)
    return jittered(tokens, rng, jitter)


def touches(time: int, edge: int) -> bool:
    return abs(time - edge) <= at(0.1)


def decodes_well(window: Window, word: Said, said: list[Said], *, first: bool = True, last: bool = True) -> bool:
    """Whether the word is at least 0.8 s from the window edges. It may be the window's first or last word only where allowed."""
    inside = [w for w in said if w.start >= window.start_sample and w.end <= window.end_sample]
    return (
        word.start > window.start_sample + at(0.8)
        and word.end < window.end_sample - at(0.8)
        and (first or word is not inside[0])
        and (last or word is not inside[-1])
    )


def truncated(words: list[Said], window: Window, rng: random.Random) -> list[Token]:
    """Possible tokens of a word that a window edge truncates: none, the audible ones, or wrong ones."""
    tokens: list[Token] = []
    for word in words:
        start, end = max(word.start, window.start_sample), min(word.end, window.end_sample)
        audible = [t for t in word.tokens() if t.end_sample > start and t.start_sample < window.end_sample]
        # The start of a word is decoded with a word-start marker. The rest of a word may be decoded without one.
        wrong = token(rng.choice(["▁uh", "▁for", "▁s"] + ["ven"] * (word.start < start)), start, end)
        tokens += rng.choice([[], audible, [wrong], [wrong, *audible[1:]]])
    return tokens


def with_one_error(tokens: list[Token], rng: random.Random) -> list[Token]:
    k = rng.randrange(len(tokens) - (tokens[-1].piece == "."))
    here = tokens[k]
    marker = "▁" if here.piece.startswith("▁") else ""
    match rng.choice(["substitute", "delete", "insert", "none"]):
        case "substitute":
            return [*tokens[:k], replace(here, piece=marker + "x"), *tokens[k + 1 :]]
        case "delete":
            rest = tokens[:k] + tokens[k + 1 :]
            return rest if any(t.piece != "." for t in rest) else []
        case "insert":
            middle = (here.start_sample + here.end_sample) // 2
            more = "x" if tokens[-1].piece == "." else rng.choice(["x", "▁a", "."])
            return [*tokens[: k + 1], token(more, middle, here.end_sample), *tokens[k + 1 :]]
    return tokens


def jittered(tokens: list[Token], rng: random.Random, jitter: int) -> list[Token]:
    """Shift each token, or all tokens alike, by up to `jitter` samples. Start times never decrease, as in a decoder's output."""
    together = rng.choice([None, rng.randint(-jitter, jitter)])
    shifted, floor = [], 0
    for one in tokens:
        moved = one.moved(rng.randint(-jitter, jitter) if together is None else together)
        floor = max(floor, moved.start_sample)
        shifted.append(replace(moved, start_sample=floor, end_sample=max(floor, moved.end_sample)))
    return shifted


@pytest.mark.parametrize("knows_overlap", [True, False])
@pytest.mark.parametrize(
    ("words", "pause_s"),
    [
        pytest.param([*SPOKEN], (0.0, 0.5), id="speech"),
        pytest.param([*SPOKEN], (0.0, 0.0), id="dense"),
        pytest.param(["seven"], (0.0, 0.0), id="one-word-dense"),
        pytest.param(["seven", "two"], (0.0, 0.15), id="repeats"),
        pytest.param([*SPOKEN], (0.5, 2.5), id="long-pauses"),
    ],
)
@quick
@given(sizes=window_settings(4, 12, 1.5, 4), length=st.integers(0, at(40)), seed=st.integers(0, 2**32))
def test_windows_of_any_plan_merge_to_the_spoken_words(
    words: list[str],
    pause_s: tuple[float, float],
    knows_overlap: bool,
    sizes: tuple[float, float],
    length: int,
    seed: int,
) -> None:
    said, rng = say(length, words, pause_s, seed), random.Random(seed)
    windows = plan(audio_of(said, length), *sizes)
    merger, overlap = (Merger(sizes[1]), at(sizes[1])) if knows_overlap else (Merger(), length)
    decoded = [simulate(windows, k, said, overlap, rng) for k in range(len(windows))]

    merged: list[Token] = []
    for window, tokens in zip(windows, decoded, strict=True):
        merged += merger.add(window.start_sample, window.end_sample, tokens)
        held_from = window.start_sample if not knows_overlap else window.end_sample - at(sizes[1])
        due = [word for word in said if word.end < held_from - at(2.5)]
        assert len(merged) >= sum(len(word.tokens()) for word in due)
    merged += merger.finish()

    expected = [t for word in said for t in word.tokens()]
    assert [t.piece for t in merged] == [t.piece for t in expected]
    assert all(abs(a.start_sample - b.start_sample) <= JITTER for a, b in zip(merged, expected, strict=True))
    assert is_monotonic(merged)

    # Merging all windows at the end gives the same tokens as the merger returned step by step.
    whole, end = list[Token](), 0
    for window, tokens in zip(windows, decoded, strict=True):
        start = max(window.start_sample, end - math.ceil(sizes[1] * SAMPLE_RATE / FRAME_SAMPLES) * FRAME_SAMPLES)
        whole = merge(whole, tokens, (start if knows_overlap else window.start_sample, end))
        end = window.end_sample
    assert merged == whole


def is_monotonic(tokens: list[Token]) -> bool:
    return all(a.start_sample <= b.start_sample for a, b in pairwise(tokens)) and all(
        t.start_sample <= t.end_sample for t in tokens
    )


# --- merge: single cases ------------------------------------------------------------------------------------


def tokens_at(*timed: tuple[str, float]) -> list[Token]:
    """Tokens from (text, start in seconds). `|` separates the pieces of a text, which start 80 ms apart."""
    return [
        token(piece, at(start_s) + k * FRAME_SAMPLES, at(start_s) + (k + 1) * FRAME_SAMPLES)
        for text, start_s in timed
        for k, piece in enumerate(text.split("|"))
    ]


def text_of(tokens: list[Token]) -> str:
    return "".join(t.piece for t in tokens).replace("▁", " ").strip()


@dataclass(frozen=True)
class Case:
    """The tokens of two windows and the text of the merged tokens. By default, the windows overlap from 16 s to 20 s."""

    name: str
    left: list[Token]
    right: list[Token]
    text: str
    overlap_s: tuple[float, float] = (16, 20)


CASES = [
    Case("nothing", [], [], ""),
    Case("left only", tokens_at(("▁one", 17)), [], "one"),
    Case("right only", [], tokens_at(("▁one", 17)), "one"),
    Case("no overlap", tokens_at(("▁one", 15)), tokens_at(("▁two", 16)), "one two", (16, 16)),
    Case("a gap between", tokens_at(("▁one", 15)), tokens_at(("▁one", 15.2)), "one one", (15, 14)),
    Case(
        "capital spelled with other pieces",
        tokens_at(("▁one", 15), ("▁s|eve|n", 16.3), ("▁two", 17)),
        tokens_at(("▁|S|eve|n", 16.3), ("▁t|wo", 17), ("▁three", 19)),
        "one seven two three",
    ),
    Case(
        "capital on the right's first word after the middle",
        tokens_at(("▁one", 15), ("▁s|eve|n", 18.5)),
        tokens_at(("▁|S|eve|n", 18.5), ("▁three", 21)),
        "one seven three",
    ),
    Case(
        "full stop on the left's last word before the middle",
        tokens_at(("▁one", 16.5), ("▁s|eve|n|.", 17.3)),
        tokens_at(("▁One", 16.5), ("▁s|eve|n", 17.3), ("▁three", 21)),
        "one seven three",
    ),
    Case(
        "last word of the left and first word of the right: each window has half of the correct word",
        tokens_at(("▁one", 15), ("▁s|eve|n|.", 18.5)),
        tokens_at(("▁|S|eve|n|,", 18.5), ("▁three", 21)),
        "one seven, three",
    ),
    Case(
        "a sentence that really ends",
        tokens_at(("▁one", 16.5), ("▁two|.", 17), ("▁Three", 17.5), ("▁four|.", 19.5)),
        tokens_at(("▁One", 16.5), ("▁two", 17), ("▁Three", 17.5), ("▁four", 19.5), ("▁five", 20.5)),
        "one two. Three four five",
    ),
    Case(
        "same word with another case at a very different time",
        tokens_at(("▁the", 16), ("▁meeting", 17)),
        tokens_at(("▁Meeting", 17.9), ("▁ended", 18.9)),
        "the meeting ended",
    ),
    Case(
        "repeats, one of which is missing in each window",
        tokens_at(("▁seven", 15.8), ("▁seven", 16.3), ("▁seven", 16.8), ("▁seven", 17.3), ("▁sev", 19.9)),
        tokens_at(("▁Seven", 16.3), ("▁seven", 16.8), ("▁seven", 17.3), ("▁seven", 20)),
        "seven seven seven seven seven",
    ),
    Case(
        "one word in each window, too far apart to be the same word",
        tokens_at(("▁one", 16.5), ("▁seven", 17)),
        tokens_at(("▁one", 16.5), ("▁seven", 17.9), ("▁two", 21)),
        "one seven seven two",
    ),
    Case(
        "repeats on either side of a silent overlap",
        tokens_at(("▁seven", 15.2)),
        tokens_at(("▁seven", 19.8)),
        "seven seven",
    ),
    Case(
        "right begins inside a word",
        tokens_at(("▁it", 15), ("▁work|s", 15.9), ("▁well", 17)),
        tokens_at(("s", 16), ("▁well", 17), ("▁now", 20)),
        "it works well now",
    ),
    Case(
        "right begins inside a word that the left did not decode",
        tokens_at(("▁it", 13)),
        tokens_at(("works", 17), ("▁now", 20)),
        "it works now",
    ),
    Case(
        "right begins with the punctuation of a word before its start",
        tokens_at(("▁it", 15), ("▁works", 15.5)),
        tokens_at((".", 16), ("▁Now", 18)),
        "it works Now",
    ),
    Case(
        "left ends inside a word",
        tokens_at(("▁it", 17), ("▁wor", 19.7)),
        tokens_at(("▁it", 17), ("▁work|s", 19.7), ("▁now", 20.5)),
        "it works now",
    ),
    Case(
        "no words are equal: cut in the middle, between words",
        tokens_at(("▁a", 16.5), ("▁b", 17.4), ("▁c", 18.3), ("▁d", 19.2)),
        tokens_at(("▁w", 16.5), ("▁x", 17.4), ("▁y", 18.3), ("▁z", 19.2)),
        "a b y z",
    ),
    Case(
        "a misrecognised word is kept far from the edge and dropped near it",
        tokens_at(("▁one", 16.5), ("▁two", 17), ("▁free", 19), ("▁fore", 19.5)),
        tokens_at(("▁won", 16.5), ("▁two", 17), ("▁three", 19), ("▁four", 19.5)),
        "one two three four",
    ),
    Case(
        "a word that the left joined to the next, close to one that the right misrecognised",
        tokens_at(("▁four", 16.1), ("▁e|ight", 16.44), ("eve|n", 17.1), ("▁it", 17.43)),
        tokens_at(("▁x", 16.05), ("▁e|ight", 16.4), ("▁s|eve|n", 16.9), ("▁it|'s", 17.39), ("▁two", 17.8)),
        "four eight seven it's two",
        (16, 17.52),
    ),
    Case(
        "a word in only one window is kept, before and after the middle",
        tokens_at(("▁one", 17), ("▁two", 17.6), ("▁six", 18.2), ("▁seven", 18.8), ("▁eight", 19.5)),
        tokens_at(("▁one", 17), ("▁four", 17.3), ("▁two", 17.6), ("▁six", 18.2), ("▁eight", 19.5)),
        "one four two six seven eight",
    ),
    Case(
        "a left window without words in the overlap",
        tokens_at(("▁one", 1)),
        tokens_at(("▁Two", 16), ("▁three", 16.4), ("▁four", 18)),
        "one Two three four",
    ),
    Case(
        "case of a word that is neither first nor last",
        tokens_at(("▁one", 16.5), ("▁two", 17), ("▁|S|eve|n", 18.8), ("▁four", 19.5)),
        tokens_at(("▁One", 16.5), ("▁|T|wo", 17), ("▁s|eve|n", 18.8), ("▁four", 19.5), ("▁five", 21)),
        "one two seven four five",
    ),
    Case(
        "a truncated word at the right window's edge where the left has no word",
        tokens_at(("▁one", 15.5), ("▁seven", 16.05), ("▁two", 18)),
        tokens_at(("▁seven", 16.1), ("▁a", 16.45), ("▁two", 18)),
        "one seven two",
    ),
    Case(
        "a word with a wrong beginning, after a long pause",
        tokens_at(("▁two", 15), ("even", 19.7)),
        tokens_at(("▁seven", 19.7), ("▁three", 20.5)),
        "two seven three",
    ),
    Case(
        "a misrecognised word whose short tokens do not overlap the correct word",
        tokens_at(("▁one", 16.5), ("▁free", 18.9)),
        tokens_at(("▁one", 16.5), ("▁three", 19.15)),
        "one three",
    ),
    Case(
        "letters without spaces between words",
        tokens_at(*((letter, 16.4 + 0.4 * k) for k, letter in enumerate("今日はいい天気です"))),
        tokens_at(*((letter, 16.4 + 0.4 * k) for k, letter in enumerate("本日はいい天気ですね"))),
        "今日はいい天気ですね",
    ),
    Case(
        "punctuation of a word before the overlap",
        tokens_at(("▁one", 12.5), ("▁seven|.", 13)),
        tokens_at(("▁one", 12.5), ("▁seven", 13), ("▁two", 17)),
        "one seven. two",
    ),
    Case(
        "a word of the right before the overlap",
        tokens_at(("▁one", 14), ("▁two", 17)),
        tokens_at(("▁won", 14), ("▁two", 17), ("▁three", 19)),
        "one two three",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_merge(case: Case) -> None:
    merged = merge(case.left, case.right, (at(case.overlap_s[0]), at(case.overlap_s[1])))
    assert text_of(merged) == case.text
    assert is_monotonic(merged)


def test_tokens_of_one_frame_keep_their_order_and_late_starts_are_clamped() -> None:
    left = [token(piece, at(17), at(17)) for piece in ("▁c", "▁a", "▁b")]
    right = [token("▁d", at(19), at(19.1)), token("▁e", at(18.9), at(18.95)), token("▁f", at(21), at(21.1))]
    merged = merge(left, right, (at(16), at(20)))
    assert text_of(merged) == "c a b d e f"
    assert (merged[4].start_sample, merged[4].end_sample) == (at(19), at(19))


tokens_of_a_window = st.lists(
    st.tuples(st.sampled_from(["▁a", "▁A", "▁b", "▁c", "c", ".", "▁", "'"]), st.integers(0, at(0.5))), max_size=14
)


@thorough
@given(tokens_of_a_window, tokens_of_a_window, st.integers(0, at(3)))
def test_merge_of_any_tokens_keeps_order_and_drops_no_word_without_a_rival(
    left_steps: list[tuple[str, int]], right_steps: list[tuple[str, int]], shared: int
) -> None:
    sides = []
    for first_id, start, steps in ((0, at(6) - shared, left_steps), (1000, at(6) - shared, right_steps)):
        tokens = []
        for k, (piece, step) in enumerate(steps):
            start += step
            tokens.append(Token(piece, first_id + k, start, start + FRAME_SAMPLES, 0.5))
        sides.append(tokens)
    left = [t for t in sides[0] if t.end_sample <= at(6)]
    right = sides[1]
    merged = merge(left, right, (at(6) - shared, at(6)))

    assert is_monotonic(merged)
    for side in (left, right):
        own = {t.token_id for t in side}
        kept_ids = [t.token_id for t in merged if t.token_id in own]
        assert kept_ids == sorted(set(kept_ids))
    kept = {t.token_id for t in merged}
    for side, other in ((left, right), (right, left)):
        for t in side:
            if t.token_id not in kept and t.piece[-1].isalpha():
                assert any(abs(t.start_sample - o.start_sample) < at(2) for o in other)


def test_merger_returns_no_tokens_for_silence_or_without_windows() -> None:
    merger = Merger(2.0)
    assert merger.finish() == []
    assert merger.add(0, at(30), []) == []
    assert merger.add(at(28), at(58), []) == []
    assert merger.finish() == []


def test_merger_returns_all_tokens_before_the_overlap_at_once() -> None:
    tokens = tokens_at(*((f"▁w{k}", 0.5 * k) for k in range(60)))
    assert len(Merger(2.0).add(0, at(30), tokens)) > 50
    assert Merger().add(0, at(30), tokens) == []
