"""Which words are crosstalk, exactly; and that all others stay once, in their channel and in order."""

import random
from itertools import pairwise

import numpy as np
import pytest

from serve_app.merging.crosstalk import LOUDER, SAME_TIME, Crosstalk
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES, Levels

LOUD, QUIET = 0.1, 0.01
FRAMES = 200


def word(text: str, frame: int, frames: int = 4) -> Token:
    return Token(f"▁{text}", 0, frame * FRAME_SAMPLES, (frame + frames) * FRAME_SAMPLES, 0.9)


def levels(*spans: tuple[int, int, float]) -> Levels:
    """Levels of FRAMES frames: spans from a frame to another have a level, the rest has 0.001."""
    made = np.full(FRAMES, 0.001, np.float32)
    for start, stop, level in spans:
        made[start:stop] = level
    return made


def kept(*channels: tuple[list[Token], Levels], louder: float = LOUDER) -> list[list[str]]:
    """The texts that stay, by channel."""
    crosstalk = Crosstalk(len(channels), louder)
    found: list[list[Token]] = [[] for _ in channels]
    for channel, (tokens, of_frames) in enumerate(channels):
        crosstalk.add_levels(channel, 0, of_frames)
        for into, more in zip(found, crosstalk.add(channel, tokens, FRAMES * FRAME_SAMPLES), strict=True):
            into += more
    for into, more in zip(found, crosstalk.finish(), strict=True):
        into += more
    return [[token.piece.lstrip("▁") for token in tokens] for tokens in found]


def test_the_weaker_copy_of_a_word_is_left_out() -> None:
    speech = [word("One", 10), word("two", 20)], levels((10, 14, LOUD), (20, 24, LOUD))
    heard = [word("one", 11), word("two.", 20)], levels((10, 14, QUIET), (20, 24, QUIET))
    assert kept(speech, heard) == [["One", "two"], []]
    assert kept(heard, speech) == [[], ["One", "two"]]


def test_each_channel_hears_the_other() -> None:
    both = levels((10, 14, LOUD), (30, 34, QUIET)), levels((10, 14, QUIET), (30, 34, LOUD))
    words = [word("one", 10), word("two", 30)]
    assert kept((words, both[0]), (words, both[1])) == [["one"], ["two"]]


def test_two_talkers_who_say_the_same_at_once_keep_both() -> None:
    one, two = ([word("yes", 10)], levels((10, 14, LOUD))), ([word("yes", 11)], levels((11, 15, LOUD / LOUDER * 1.05)))
    assert kept(one, two) == [["yes"], ["yes"]]


@pytest.mark.parametrize(("ratio", "stays"), [(0.99, True), (1.01, False)])
def test_the_margin_is_ten_decibels(ratio: float, *, stays: bool) -> None:
    one = [word("yes", 10)], levels((10, 14, LOUD))
    two = [word("yes", 10)], levels((10, 14, LOUD / (LOUDER * ratio)))
    assert kept(one, two)[1] == (["yes"] if stays else [])
    assert pytest.approx(10, abs=0.01) == 20 * np.log10(LOUDER)


@pytest.mark.parametrize("lag", range(-5, 6))
def test_words_at_other_times_stay(lag: int) -> None:
    one = [word("yes", 50, 8)], levels((50, 58, LOUD))
    two = [word("yes", 50 + lag, 8)], levels((50, 58, QUIET))
    assert kept(one, two)[1] == ([] if abs(lag) * FRAME_SAMPLES <= SAME_TIME else ["yes"])


def test_other_words_stay() -> None:
    assert kept(([word("yes", 10)], levels((10, 14, LOUD))), ([word("no", 10)], levels((10, 14, QUIET)))) == [["yes"], ["no"]]


def test_a_word_of_the_own_talker_beside_it_does_not_save_crosstalk() -> None:
    one = [word("one", 10, 6)], levels((10, 16, LOUD))
    two = [word("one", 10, 6), word("five", 15, 6)], levels((10, 14, QUIET), (14, 21, LOUD))
    assert kept(one, two) == [["one"], ["five"]]


def test_of_three_channels_the_one_of_the_talker_stays() -> None:
    words = [word("one", 10)]
    channels = [(words, levels((10, 14, LOUD / 2**n))) for n in (0, 2, 4)]
    assert kept(*channels) == [["one"], [], []]
    assert kept(*channels[::-1]) == [[], [], ["one"]]


def test_it_can_be_switched_off() -> None:
    speech, heard = ([word("one", 10)], levels((10, 14, LOUD))), ([word("one", 10)], levels((10, 14, QUIET)))
    assert kept(speech, heard, louder=np.inf) == [["one"], ["one"]]


def test_digital_silence_is_not_compared() -> None:
    silent = np.zeros(FRAMES, np.float32)
    assert kept(([word("one", 10)], levels((10, 14, LOUD))), ([word("one", 10)], silent)) == [["one"], ["one"]]


def test_a_word_waits_until_the_other_channels_are_past_it() -> None:
    crosstalk = Crosstalk(2)
    crosstalk.add_levels(0, 0, levels((10, 14, QUIET)))
    crosstalk.add_levels(1, 0, levels((10, 14, LOUD)))
    assert crosstalk.add(0, [word("one", 10)], 50 * FRAME_SAMPLES) == [[], []]
    assert crosstalk.positions == [10 * FRAME_SAMPLES, 0]
    assert crosstalk.add(1, [], 12 * FRAME_SAMPLES) == [[], []]
    assert crosstalk.add(1, [word("one", 12)], 13 * FRAME_SAMPLES) == [[], [word("one", 12)]]
    assert crosstalk.positions == [50 * FRAME_SAMPLES, 13 * FRAME_SAMPLES]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("channels", [1, 2, 4])
def test_everything_else_stays_once_in_its_channel_and_in_order(channels: int, seed: int) -> None:
    rng = random.Random(seed)
    crosstalk, windows, size = Crosstalk(channels), 30, 40
    said: list[list[Token]] = [[] for _ in range(channels)]
    found: list[list[Token]] = [[] for _ in range(channels)]
    held = 0
    for window in range(windows):
        for channel in rng.sample(range(channels), channels):
            starts = sorted(rng.sample(range(window * size, (window + 1) * size - 4), 6))
            tokens = [word(f"{channel}-{n}-{frame}", frame, 2) for n, frame in enumerate(starts)]
            said[channel] += tokens
            crosstalk.add_levels(channel, window * size * FRAME_SAMPLES, np.full(size, rng.random(), np.float32))
            before = crosstalk.positions
            for other, more in enumerate(crosstalk.add(channel, tokens, (window + 1) * size * FRAME_SAMPLES)):
                assert all(token.start_sample >= before[other] for token in more)
                found[other] += more
            held = max(held, sum(map(len, said)) - sum(map(len, found)))
    for other, more in enumerate(crosstalk.finish()):
        found[other] += more
    assert found == said
    for tokens in found:
        assert all(one.start_sample <= two.start_sample for one, two in pairwise(tokens))
    # Words of two windows of each channel at most.
    assert held <= 12 * channels


def test_what_is_held_does_not_grow_with_the_recording() -> None:
    crosstalk, sizes = Crosstalk(2), []
    for window in range(50):
        start = window * 100
        for channel in range(2):
            crosstalk.add_levels(channel, start * FRAME_SAMPLES, np.full(120, 0.1, np.float32))
            crosstalk.add(channel, [word("one", start + n) for n in range(0, 100, 5)], (start + 100) * FRAME_SAMPLES)
        sizes.append(sum(len(channel.words) + len(channel._levels) for channel in crosstalk._channels))
    assert max(sizes) <= sizes[3] + 10
