"""Every channel of a recording has the windows that it would have alone; when a merge is past a word."""

import random
from collections.abc import Iterator

import numpy as np
import pytest

from serve_app.chunking import Merger, channel_windows, windows
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Samples
from testing.decoding import CUT, assert_same_windows


def blocks_of(samples: Samples, rng: random.Random) -> Iterator[Samples]:
    """int16 [channels, samples] in blocks of any length, empty ones and huge ones too."""
    start = 0
    while start < samples.shape[1]:
        length = rng.choice([0, 1, rng.randrange(SAMPLE_RATE), rng.randrange(20 * SAMPLE_RATE)])
        yield samples[:, start : start + length]
        start += length


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_the_windows_of_a_channel_are_those_it_has_alone(channels: int, seed: int) -> None:
    rng = random.Random(seed)
    length = rng.randrange(1, 40 * SAMPLE_RATE)
    samples = np.random.default_rng(seed).integers(-9000, 9000, (channels, length), dtype=np.int16)
    found = list(channel_windows(blocks_of(samples, rng), *CUT))
    for channel in range(channels):
        own = [window for window in found if window.channel == channel]
        assert_same_windows(own, list(windows([samples[channel]], *CUT)))


def test_windows_come_as_soon_as_they_end_the_channels_together() -> None:
    second = np.random.default_rng(0).integers(-9000, 9000, (3, SAMPLE_RATE), dtype=np.int16)
    pushed, starts = 0, []

    def blocks() -> Iterator[Samples]:
        nonlocal pushed
        for _ in range(60):
            pushed += 1
            yield second

    for window in channel_windows(blocks(), *CUT):
        starts.append(window.start_sample)
        assert window.start_sample >= (pushed - CUT[0] - 1) * SAMPLE_RATE
    assert starts == sorted(starts)


def test_no_audio_no_windows() -> None:
    assert list(channel_windows([], *CUT)) == []
    assert list(channel_windows([np.zeros((2, 0), np.int16)], *CUT)) == []


@pytest.mark.parametrize("seed", range(30))
def test_no_token_comes_before_what_the_merger_says_is_settled(seed: int) -> None:
    rng = random.Random(seed)
    merger, end, settled = Merger(CUT[1]), 0, 0
    for index in range(20):
        start = max(0, end - rng.choice([24, 25, 40]) * FRAME_SAMPLES) if index else 0
        end = start + rng.randrange(45, 60) * FRAME_SAMPLES
        tokens = merger.add(start, end, list(words(rng, start, end)))
        assert all(token.start_sample >= settled for token in tokens)
        assert merger.settled_sample >= settled
        settled = merger.settled_sample
        assert settled <= end
    assert all(token.start_sample >= settled for token in merger.finish())


def words(rng: random.Random, start: int, end: int) -> Iterator[Token]:
    """What a model that is not sure of anything might find."""
    at = start + rng.randrange(10) * FRAME_SAMPLES
    while (stop := at + rng.randrange(5) * FRAME_SAMPLES) < end:
        yield Token(rng.choice(["▁one", "▁two", "▁three", "."]), 0, at, stop, 0.9)
        at = stop + rng.randrange(12) * FRAME_SAMPLES
