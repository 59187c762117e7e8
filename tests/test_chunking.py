"""The two promises of `serve_app.chunking`: a plan loses no sample, and merging gives back what was said, once."""

import random
import tracemalloc
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st

from serve_app.chunking import Merger, Planner, merge
from serve_app.transcript import FRAME_SAMPLES, SAMPLE_RATE, Samples, Token, Window

JITTER = FRAME_SAMPLES
"""How far one window's copy of a token may be from its true time, samples (80 ms)."""

quick = settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.too_slow])
thorough = settings(quick, max_examples=250)


def at(seconds: float) -> int:
    return round(seconds * SAMPLE_RATE)


# --- plan ---------------------------------------------------------------------------------------------------------------


def plan(audio: Samples, window_s: float, overlap_s: float, blocks: list[int] | None = None) -> list[Window]:
    planner = Planner(window_s, overlap_s)
    windows, rest = [], audio
    for size in blocks or []:
        windows += planner.push(rest[:size])
        rest = rest[size:]
    return windows + planner.push(rest) + planner.finish()


def speech(length: int, seed: int, silences: int) -> Samples:
    """Noise with `silences` stretches of digital or faint silence: int16 [length]."""
    generator = np.random.default_rng(seed)
    audio = generator.normal(0, 3000, length)
    for _ in range(silences):
        start = int(generator.integers(0, max(1, length)))
        audio[start : start + int(generator.integers(100, at(3)))] *= generator.choice([0.0, 0.01])
    return audio.astype(np.int16)


@st.composite
def window_settings(draw: st.DrawFn) -> tuple[float, float]:
    window_s = draw(st.floats(2, 9))
    # Of an overlap rounded up to frames, half the window may be a little less than asked: stay a frame away.
    return window_s, draw(st.floats(0, window_s / 2 - 0.08))


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
    for before, after in zip(windows, windows[1:], strict=False):
        assert before.start_sample < after.start_sample
        assert before.end_sample < after.end_sample
        assert before.end_sample - after.start_sample >= overlap_s * SAMPLE_RATE - 1e-3
    for before, after in zip(windows[:-1], windows[1:-1], strict=False):
        assert before.end_sample - after.start_sample < overlap_s * SAMPLE_RATE + FRAME_SAMPLES
    for before, after in zip(windows[:-2], windows[2:-1], strict=False):
        assert after.start_sample >= before.end_sample - FRAME_SAMPLES
    if len(windows) > 1:
        assert len(windows[-1].samples) > window_s * SAMPLE_RATE - FRAME_SAMPLES - 1

    blocks = data.draw(st.lists(st.integers(0, at(12)) | st.integers(0, 50), max_size=12))
    again = plan(audio, window_s, overlap_s, blocks)
    assert [(w.index, w.start_sample, w.end_sample) for w in again] == [
        (w.index, w.start_sample, w.end_sample) for w in windows
    ]
    assert all(np.array_equal(w.samples, v.samples) for w, v in zip(windows, again, strict=True))


@quick
@given(st.floats(-0.85, 0.85), st.floats(2, 4), st.sampled_from([0.0, 0.03]))
def test_middle_of_overlap_is_moved_into_the_pause(offset_s: float, overlap_s: float, level: float) -> None:
    audio = np.random.default_rng(1).normal(0, 3000, at(40))
    steady = plan(np.full(at(40), 100, np.int16), 20, overlap_s)
    planned = (steady[1].start_sample + steady[0].end_sample) // 2
    pause = planned + at(offset_s)
    audio[pause - at(0.15) : pause + at(0.15)] *= level
    first, second, *_ = plan(audio.astype(np.int16), 20, overlap_s)
    assert abs((second.start_sample + first.end_sample) // 2 - pause) <= at(0.1)


def test_windows_come_as_soon_as_they_are_complete() -> None:
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
def test_planner_refuses_windows_that_cannot_get_on(window_s: float, overlap_s: float) -> None:
    with pytest.raises(ValueError, match="overlap_s"):
        Planner(window_s, overlap_s)


@pytest.mark.parametrize(("window_s", "overlap_s"), [(2, 1), (2, 0.5), (32, 2), (600, 300), (30.5, 0.5)])
def test_planner_takes_what_the_settings_allow(window_s: float, overlap_s: float) -> None:
    Planner(window_s, overlap_s)


# --- merge: what a recogniser would hear in each window of a known recording ----------------------------------------------

SPOKEN = {
    "seven": (("▁s", "eve", "n"), ("▁", "S", "eve", "n")),
    "four": (("▁four",), ("▁F", "our")),
    "two": (("▁t", "wo"), ("▁T", "wo")),
    "eight": (("▁e", "ight"), ("▁", "E", "i", "ght")),
    "it's": (("▁it", "'", "s"), ("▁It", "'", "s")),
    "nine": (("▁n", "ine"), ("▁N", "ine")),
}


@dataclass(frozen=True)
class Said:
    """A word of the recording with its true span in samples."""

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
    """Words of 0.25 to 0.5 s until the recording is full; a word that repeats the one before takes 0.4 s at least."""
    rng = random.Random(seed)
    said: list[Said] = []
    now = at(rng.uniform(0, 0.5))
    while True:
        word = rng.choice(words)
        span = at(rng.uniform(0.25 if len(words) > 4 else 0.4, 0.5))
        if now + span > length:
            return said
        said.append(Said(word, rng.random() < 0.15, now, now + span))
        now += span + at(rng.uniform(*pause_s)) + at(rng.choice([0, 0, 0, 0, 0, 0, pause_s[1] * 20]))


def audio_of(said: list[Said], length: int) -> Samples:
    audio = np.random.default_rng(0).normal(0, 1, length)
    for word in said:
        audio[word.start : word.end] *= 3000
    return audio.astype(np.int16)


def hear(windows: list[Window], k: int, said: list[Said], reach: int, rng: random.Random) -> list[Token]:
    """What window `k` gives: its whole words, with the errors that a window's edges bring."""
    window = windows[k]
    whole = [word for word in said if word.start >= window.start_sample and word.end <= window.end_sample]
    cut_first = [word for word in said if word.start < window.start_sample < word.end]
    cut_last = [word for word in said if word.start < window.end_sample < word.end]

    tokens = remains(cut_first, window, rng)
    for word in whole:
        is_first, is_last = word is whole[0] and not tokens, word is whole[-1]
        capital = is_first and k > 0 and hears_well(windows[k - 1], word, said, first=False)
        stop = word.stop or (
            is_last
            and not cut_last
            and k + 1 < len(windows)
            and word.start >= window.end_sample - reach
            and hears_well(windows[k + 1], word, said, last=False)
        )
        heard = word.tokens(capital=capital and rng.random() < 0.8, stop=stop and (word.stop or rng.random() < 0.8))
        if (k > 0 and touches(word.start, window.start_sample)) or (
            k + 1 < len(windows) and touches(word.end, window.end_sample)
        ):
            heard = with_one_error(heard, rng)
        tokens += heard
    tokens += remains(cut_last, window, rng)
    return jittered(tokens, rng)


def touches(time: int, edge: int) -> bool:
    return abs(time - edge) <= at(0.1)


def hears_well(window: Window, word: Said, said: list[Said], *, first: bool = True, last: bool = True) -> bool:
    """Whether the window holds the word clear of its edges and their errors, and (unless allowed) neither first nor last."""
    inside = [w for w in said if w.start >= window.start_sample and w.end <= window.end_sample]
    return (
        word.start > window.start_sample + at(0.6)
        and word.end < window.end_sample - at(0.6)
        and (first or word is not inside[0])
        and (last or word is not inside[-1])
    )


def remains(words: list[Said], window: Window, rng: random.Random) -> list[Token]:
    """A word that an edge cuts: nothing, its audible tokens, or something else."""
    tokens: list[Token] = []
    for word in words:
        start, end = max(word.start, window.start_sample), min(word.end, window.end_sample)
        audible = [t for t in word.tokens() if t.end_sample > start and t.start_sample < window.end_sample]
        wrong = token(rng.choice(["▁uh", "▁four", "ven", "▁s"]), start, end)
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
            return tokens[:k] + tokens[k + 1 :]
        case "insert":
            middle = (here.start_sample + here.end_sample) // 2
            return [*tokens[: k + 1], token(rng.choice(["x", "▁a", "."]), middle, here.end_sample), *tokens[k + 1 :]]
    return tokens


def jittered(tokens: list[Token], rng: random.Random) -> list[Token]:
    """Each token off by up to 80 ms, or all by the same; a decoder's starts never go back."""
    together = rng.choice([None, rng.randint(-JITTER, JITTER)])
    shifted, floor = [], 0
    for one in tokens:
        moved = one.moved(rng.randint(-JITTER, JITTER) if together is None else together)
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
@settings(quick, max_examples=70)
@given(st.floats(4, 12), st.floats(1.2, 4), st.integers(0, at(40)), st.integers(0, 2**32))
def test_any_plan_merges_back_to_what_was_said(
    words: list[str],
    pause_s: tuple[float, float],
    knows_overlap: bool,
    window_s: float,
    overlap_s: float,
    length: int,
    seed: int,
) -> None:
    assume(overlap_s <= window_s / 2 - 0.08)
    said = say(length, words, pause_s, seed)
    windows = plan(audio_of(said, length), window_s, overlap_s)
    rng = random.Random(seed)
    merger = Merger(overlap_s) if knows_overlap else Merger()
    merged: list[Token] = []
    reach = at(overlap_s) if knows_overlap else length
    for k, window in enumerate(windows):
        final = merger.add(window.start_sample, window.end_sample, hear(windows, k, said, reach, rng))
        merged += final
    merged += merger.finish()

    expected = [t for word in said for t in word.tokens()]
    assert [t.piece for t in merged] == [t.piece for t in expected]
    assert all(abs(a.start_sample - b.start_sample) <= JITTER for a, b in zip(merged, expected, strict=True))
    assert all(a.start_sample <= b.start_sample for a, b in zip(merged, merged[1:], strict=False))
