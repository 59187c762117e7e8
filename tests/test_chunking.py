"""The Planner loses no sample, and its windows merge to every spoken word exactly once."""

import math
import random
import tracemalloc
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.chunking import Merger, Planner
from serve_app.merging.seams import merge
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples
from testing.simulated_windows import (
    JITTER,
    SPOKEN,
    at,
    audio_of,
    is_monotonic,
    plan,
    quick,
    say,
    simulate,
    thorough,
    token,
    window_settings,
)


def speech(length: int, seed: int, silences: int) -> Samples:
    """int16 [length] of noise with `silences` stretches of digital or near silence."""
    generator = np.random.default_rng(seed)
    audio = generator.normal(0, 3000, length)
    for _ in range(silences):
        start = int(generator.integers(0, max(1, length)))
        audio[start : start + int(generator.integers(100, at(3)))] *= generator.choice([0.0, 0.01])
    return audio.astype(np.int16)


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


def test_merger_returns_no_tokens_for_silence_or_without_windows() -> None:
    merger = Merger(2.0)
    assert merger.finish() == []
    assert merger.add(0, at(30), []) == []
    assert merger.add(at(28), at(58), []) == []
    assert merger.finish() == []


def test_merger_returns_all_tokens_before_the_overlap_at_once() -> None:
    tokens = [token(f"▁w{k}", at(0.5 * k), at(0.5 * k) + FRAME_SAMPLES) for k in range(60)]
    assert len(Merger(2.0).add(0, at(30), tokens)) > 50
    assert Merger().add(0, at(30), tokens) == []
