"""Segments of several channels come in the order of time, as soon as that is certain."""

import random
from collections import defaultdict
from itertools import pairwise

import pytest

from serve_app.output.segments import MAX_PAUSE_S, Segmenter
from serve_app.output.turns import Turns
from serve_app.transcript import Segment, Token
from serve_app.window import SAMPLE_RATE


def token(text: str, at_s: float, seconds: float = 0.3) -> Token:
    return Token(text, 0, round(at_s * SAMPLE_RATE), round((at_s + seconds) * SAMPLE_RATE), 0.9)


def at(*seconds: float) -> list[int]:
    return [round(each * SAMPLE_RATE) for each in seconds]


def texts(segments: list[Segment]) -> list[tuple[int | None, str]]:
    return [(segment.channel, segment.text) for segment in segments]


def test_a_segment_waits_for_the_other_channels() -> None:
    turns = Turns(2)
    assert turns.add([[], [token("▁Yes.", 5), token("▁So", 8)]], at(0, 10)) == []
    assert turns.add([[token("▁Do", 2), token("▁you?", 3)], []], at(4, 10)) == []
    assert texts(turns.add([[], []], at(4.9, 10))) == []
    assert texts(turns.add([[token("▁Well", 6)], []], at(7, 10))) == [(0, "Do you?"), (1, "Yes.")]
    assert texts(turns.finish()) == [(0, "Well"), (1, "So")]


def test_a_channel_that_falls_silent_holds_nobody_back() -> None:
    turns = Turns(2)
    turns.add([[token("▁Hello", 1)], []], at(1.5, 1))
    more = turns.add([[], [token("▁One.", 4), token("▁Two.", 6), token("▁Three", 8)]], at(1.4 + MAX_PAUSE_S, 9))
    assert texts(more) == [(0, "Hello")]
    assert texts(turns.add([[], []], at(7, 9))) == [(1, "One."), (1, "Two.")]


def test_a_long_sentence_holds_back_what_starts_later_only() -> None:
    turns = Turns(2)
    turns.add([[], [token("▁Early.", 1), token("▁Late.", 4), token("▁And", 5)]], at(0, 6))
    assert texts(turns.add([[token(f"▁{n}", 3 + n) for n in range(6)], []], at(9, 6))) == [(1, "Early.")]
    assert texts(turns.finish()) == [(0, "0 1 2 3 4 5"), (1, "Late."), (1, "And")]


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("channels", [1, 2, 5])
def test_every_word_once_in_its_channel_in_the_order_of_time(channels: int, seed: int) -> None:
    rng = random.Random(seed)
    turns, said, now_s = Turns(channels), defaultdict[int, list[Token]](list), [0.0] * channels
    segments: list[Segment] = []
    for _ in range(60):
        news: list[list[Token]] = []
        for channel in range(channels):
            fresh = []
            for _ in range(rng.randrange(5)):
                now_s[channel] += rng.choice([0.3, 0.4, 1.0, 4.0])
                fresh.append(token(rng.choice(["▁one", "▁two.", "▁three"]), now_s[channel]))
            now_s[channel] += 0.3 * bool(fresh)
            said[channel] += fresh
            news.append(fresh)
        segments += turns.add(news, at(*now_s))
    segments += turns.finish()
    assert [segment.index for segment in segments] == list(range(len(segments)))
    assert all(one.start_s <= two.start_s for one, two in pairwise(segments))
    for channel in range(channels):
        own = [segment for segment in segments if segment.channel == channel]
        assert [t for segment in own for t in segment.tokens] == said[channel]
        alone = Segmenter()
        assert [segment.text for segment in own] == [s.text for s in alone.add(said[channel]) + alone.finish()]


def test_silence_ends_a_segment_once_the_pause_is_long_enough() -> None:
    segmenter = Segmenter()
    assert segmenter.start_sample is None
    segmenter.add([token("▁one", 1), token("▁two", 2)])
    assert segmenter.start_sample == SAMPLE_RATE
    assert segmenter.pass_silence(at(2.29 + MAX_PAUSE_S)[0]) == []
    assert [segment.text for segment in segmenter.pass_silence(at(2.31 + MAX_PAUSE_S)[0])] == ["one two"]
    assert segmenter.start_sample is None
    assert segmenter.finish() == []
