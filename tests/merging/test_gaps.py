"""Words that the model deleted are found and inserted; all other words stay the same."""

import asyncio
import math
import random
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from serve_app.engine.parakeet import ParakeetEngine
from serve_app.errors import EngineError
from serve_app.merging.gaps import (
    FREE_RETRIES,
    RETRY_LAG,
    WINDOWS_PER_RETRY,
    Gap,
    GapRepair,
    filled,
    frame_levels,
    suspicious_gaps,
)
from serve_app.merging.seams import group_words
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples, Window
from testing import virtual_time
from testing.accuracy import add_noise
from testing.digit_strings import DigitString, to_int16


class DeletingModel:
    """The bundled model, but in windows that start at `start_sample` the words with indices `first` to `last` - 1 are deleted."""

    def __init__(self, engine: ParakeetEngine, start_sample: int, first: int, last: int) -> None:
        self._engine = engine
        self._start_sample = start_sample
        self._deleted = slice(first, last)
        self.windows: list[Window] = []

    async def __call__(self, window: Window) -> list[Token]:
        self.windows.append(window)
        words = group_words(self._engine.transcribe([window.samples])[0])
        if window.start_sample == self._start_sample:
            del words[self._deleted]
        return [token for word in words for token in word.tokens]


def padded(string: DigitString, silence_s: float) -> DigitString:
    silence = round(silence_s * SAMPLE_RATE)
    words = tuple(replace(w, start_sample=w.start_sample + silence, end_sample=w.end_sample + silence) for w in string.words)
    return DigitString(np.pad(string.samples, silence), words)


def text(tokens: Sequence[Token]) -> str:
    return "".join(token.piece for token in tokens).replace("▁", " ").strip()


@pytest.mark.parametrize("ratio_db", [None, 15])
@pytest.mark.parametrize(("first", "last"), [(4, 8), (0, 4), (7, 12), (0, 12)])
def test_a_deleted_phrase_is_decoded_by_the_retry(
    engine: ParakeetEngine, strings: list[DigitString], first: int, last: int, ratio_db: float | None
) -> None:
    string = padded(strings[11], 3)
    if ratio_db is not None:
        string = add_noise(string, ratio_db, 1)
    model = DeletingModel(engine, 0, first, last)
    window = Window(0, 0, to_int16(string.samples))
    assert len(text(asyncio.run(model(window))).split()) == 12 - (last - first)
    tokens = asyncio.run(GapRepair(model)(window))
    assert text(tokens).lower().replace(".", "") == string.text.lower().replace(".", "")
    assert all(a.start_sample <= b.start_sample for a, b in pairwise(tokens))


@pytest.mark.parametrize("ratio_db", [None, 30, 15])
def test_windows_without_deletions_are_not_retried(
    engine: ParakeetEngine, strings: list[DigitString], ratio_db: float | None
) -> None:
    model = DeletingModel(engine, -1, 0, 0)
    repair = GapRepair(model)
    for index, string in enumerate(strings):
        noisy = string if ratio_db is None else add_noise(string, ratio_db, 1)
        asyncio.run(repair(Window(index, 0, to_int16(noisy.samples))))
    assert len(model.windows) == len(strings)


def test_silence_and_constant_noise_have_no_suspicious_gaps() -> None:
    noise = np.random.default_rng(0).normal(0, 1000, 20 * SAMPLE_RATE).astype(np.int16)
    for samples in (np.zeros(20 * SAMPLE_RATE, np.int16), noise, noise[:100], noise[:0]):
        assert suspicious_gaps(Window(0, 0, samples), []) == []


def token(piece: str, start_s: float) -> Token:
    start = round(start_s * SAMPLE_RATE) // FRAME_SAMPLES * FRAME_SAMPLES
    return Token(piece, 0, start, start + FRAME_SAMPLES, 1.0)


@pytest.mark.parametrize("frames", [-3, -1, 0, 1, 3])
def test_words_beside_the_gap_that_the_retry_decodes_too_are_not_repeated(frames: int) -> None:
    shift = frames * FRAME_SAMPLES
    tokens = [token("▁one", 1.0), token("ne", 1.3), token("▁two", 6.0), token("o", 6.2)]
    decoded_again = [t.moved(shift) for t in tokens]
    retried = [*decoded_again[:2], token("▁six", 3.0), *decoded_again[2:]]
    gap = Gap(tokens[1].end_sample, tokens[2].start_sample, 3 * SAMPLE_RATE, 4 * SAMPLE_RATE)
    assert text(filled(tokens, gap, retried)) == "onene six twoo"


def music(seconds: int) -> Samples:
    """int16 [samples] that alternate between half a second of noise and half a second of silence."""
    beat = np.repeat([1.0, 0.0], SAMPLE_RATE // 2)
    return (np.tile(beat, seconds) * np.random.default_rng(0).normal(0, 3000, seconds * SAMPLE_RATE)).astype(np.int16)


def with_two_gaps() -> Samples:
    """int16 [samples]: music around 13 and 31 s, with silence before, between and after."""
    silence = np.zeros(8 * SAMPLE_RATE, np.int16)
    return np.concatenate([silence, music(10), silence, music(10), silence])


async def test_music_adds_at_most_a_fifth_of_the_windows_as_retries() -> None:
    decoded = 0
    samples = np.concatenate([np.zeros(8 * SAMPLE_RATE, np.int16), music(10), np.zeros(8 * SAMPLE_RATE, np.int16)])

    async def no_tokens(window: Window) -> list[Token]:
        nonlocal decoded
        decoded += 1
        return []

    repair = GapRepair(no_tokens)
    for index in range(100):
        assert await repair(Window(index, 0, samples)) == []
    assert 100 < decoded <= 100 + FREE_RETRIES + 100 // WINDOWS_PER_RETRY + RETRY_LAG


@pytest.mark.parametrize("max_in_flight", [1, 4, 30])
@pytest.mark.parametrize("seed", range(3))
def test_which_windows_are_retried_depends_neither_on_load_nor_on_order(max_in_flight: int, seed: int) -> None:
    """The transcript must be the same whenever the file is sent. Windows have two gaps; some retries find words."""
    samples = with_two_gaps()
    middle_s = len(samples) / SAMPLE_RATE / 2

    async def retried_gaps(rng: random.Random, places: asyncio.Semaphore) -> list[tuple[int, int]]:
        retried = []

        async def recognise(window: Window) -> list[Token]:
            await asyncio.sleep(rng.uniform(0.1, 10))
            if not window.is_retry:
                return [token("▁one", middle_s)]
            retried.append((window.index, window.start_sample))
            is_first = window.start_sample < len(samples) / 2
            finds_words = window.index % 4 == is_first
            return [token("▁six", len(window.samples) / SAMPLE_RATE / 2)] if finds_words else []

        repair = GapRepair(recognise)

        async def run(index: int) -> None:
            try:
                await repair(Window(index, 0, samples))
            finally:
                places.release()

        async with asyncio.TaskGroup() as tasks:
            for index in range(60):
                await places.acquire()
                tasks.create_task(run(index))
        return sorted(retried)

    async def compare() -> None:
        one_by_one = await retried_gaps(random.Random(0), asyncio.Semaphore(1))
        assert await retried_gaps(random.Random(seed), asyncio.Semaphore(max_in_flight)) == one_by_one
        assert FREE_RETRIES < len(one_by_one) < 120

    virtual_time.run(compare())


async def test_the_gaps_of_a_window_are_decoded_at_once_and_inserted_in_order() -> None:
    samples = with_two_gaps()
    both = asyncio.Barrier(2)

    async def recognise(window: Window) -> list[Token]:
        if not window.is_retry:
            return [token("▁two", 22.0)]
        async with asyncio.timeout(10):
            await both.wait()
        is_first = window.start_sample < 20 * SAMPLE_RATE
        await asyncio.sleep(0.01 * is_first)
        return [token("▁one" if is_first else "▁three", 5.0)]

    assert text(await GapRepair(recognise)(Window(0, 0, samples))) == "one two three"


@pytest.mark.parametrize("fails", [0, 1])
async def test_a_retry_that_fails_ends_the_others(fails: int) -> None:
    samples, ended = with_two_gaps(), []

    async def recognise(window: Window) -> list[Token]:
        if not window.is_retry:
            return [token("▁two", 22.0)]
        if (window.start_sample > 20 * SAMPLE_RATE) == fails:
            raise EngineError("broken")
        try:
            await asyncio.sleep(math.inf if fails == 0 else 0)
        finally:
            ended.append(window.start_sample)
        return []

    with pytest.raises(EngineError):
        await GapRepair(recognise)(Window(0, 0, samples))
    assert len(ended) == 1


async def test_a_retry_waits_for_earlier_windows_only_where_they_may_use_up_the_limit() -> None:
    silence = np.zeros(8 * SAMPLE_RATE, np.int16)
    with_gap, without = np.concatenate([silence, music(10), silence]), np.concatenate([silence] * 3)
    undecoded, retries, release = {2}, list[int](), asyncio.Event()

    async def recognise(window: Window) -> list[Token]:
        if window.is_retry:
            retries.append(window.index)
            await release.wait()
        elif window.index in undecoded:
            await release.wait()
        return []

    repair = GapRepair(recognise)

    async def run(indexes: list[int]) -> list[asyncio.Task[list[Token]]]:
        tasks = [asyncio.create_task(repair(Window(index, 0, with_gap if index < 3 else without))) for index in indexes[:-1]]
        tasks.append(asyncio.create_task(repair(Window(indexes[-1], 0, with_gap))))
        await asyncio.sleep(0.01)
        return tasks

    tasks = await run([0, 1, 2, *range(3, RETRY_LAG + 2)])
    assert retries == [0, 1, RETRY_LAG + 1]  # even if both retries before it find nothing, one more is allowed
    tasks += await run([RETRY_LAG + 2, RETRY_LAG + 3])
    assert retries == [0, 1, RETRY_LAG + 1]  # nothing is known of window 2 yet
    release.set()
    await asyncio.gather(*tasks)
    assert sorted(retries) == [0, 1, 2, RETRY_LAG + 1, RETRY_LAG + 3]


async def test_windows_that_wait_cost_little_however_many_there_are() -> None:
    """All wait for the first one, and are told of every change. The lookups grow with the square of their number at most."""
    samples = np.concatenate([np.zeros(8 * SAMPLE_RATE, np.int16), music(10), np.zeros(8 * SAMPLE_RATE, np.int16)])
    levels = frame_levels(samples)

    async def lookups(windows: int) -> int:
        count, first = 0, asyncio.Event()

        class Counted(dict[int, list[bool | None]]):
            def get(self, *arguments: Any) -> Any:
                nonlocal count
                count += 1
                return super().get(*arguments)

        async def recognise(window: Window) -> list[Token]:
            if window.index == 0 and not window.is_retry:
                await first.wait()
            for _ in range(1 if window.is_retry else window.index + 1):
                await asyncio.sleep(0)
            return []

        repair = GapRepair(recognise)
        repair._is_empty = Counted()
        tasks = [asyncio.create_task(repair(Window(index, 0, samples, levels=levels))) for index in range(windows)]
        for _ in range(2 * windows):
            await asyncio.sleep(0)
        assert len(repair._is_empty) + len(repair._done) == windows - 1
        first.set()
        await asyncio.gather(*tasks)
        return count

    assert await lookups(480) < 5 * await lookups(240)
