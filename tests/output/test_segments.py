"""Grouping of tokens into words and segments."""

import math

import pytest

from serve_app.output.segments import Segmenter
from serve_app.transcript import Segment, Token
from serve_app.window import SAMPLE_RATE


def tokens(*spoken: tuple[str, float, float], confidence: float = 0.9) -> list[Token]:
    return [
        Token(piece, i, round(start * SAMPLE_RATE), round(end * SAMPLE_RATE), confidence)
        for i, (piece, start, end) in enumerate(spoken)
    ]


SPOKEN = tokens(
    ("▁S", 1.0, 1.1), ("even", 1.1, 1.4), ("▁two", 1.6, 1.9), (".", 1.9, 1.9),
    ("▁", 3.0, 3.08), ("N", 3.08, 3.2), ("ine", 3.2, 3.5), (".", 3.5, 3.5),
)  # fmt: skip


def segments_of(given: list[Token], portions: int = 1) -> list[Segment]:
    segmenter = Segmenter()
    segments: list[Segment] = []
    size = math.ceil(len(given) / portions)
    for first in range(0, len(given), max(size, 1)):
        segments += segmenter.add(given[first : first + size])
    return segments + segmenter.finish()


def test_a_word_has_the_text_punctuation_and_times_of_its_tokens() -> None:
    first, second = segments_of(SPOKEN)
    assert [(w.text, w.start_s, w.end_s) for w in first.words] == [("Seven", 1.0, 1.4), ("two.", 1.6, 1.9)]
    assert [(w.text, w.start_s, w.end_s) for w in second.words] == [("Nine.", 3.0, 3.5)]


def test_segments_are_sentences() -> None:
    first, second = segments_of(SPOKEN)
    assert (first.index, first.text, first.start_s, first.end_s) == (0, "Seven two.", 1.0, 1.9)
    assert (second.index, second.text, second.start_s, second.end_s) == (1, "Nine.", 3.0, 3.5)
    assert [token.token_id for token in first.tokens] == [0, 1, 2, 3]


@pytest.mark.parametrize("portions", [1, 2, 3, 8])
def test_the_segments_do_not_depend_on_how_many_tokens_are_added_at_a_time(portions: int) -> None:
    assert segments_of(SPOKEN, portions) == segments_of(SPOKEN)


def test_a_segment_is_returned_when_the_next_word_begins() -> None:
    segmenter = Segmenter()
    assert segmenter.add(SPOKEN[:4]) == []
    assert [s.text for s in segmenter.add(SPOKEN[4:5])] == ["Seven two."]


def test_a_long_pause_ends_a_segment_without_a_full_stop() -> None:
    spoken = tokens(("▁one", 0.0, 0.3), ("▁two", 0.5, 0.8), ("▁three", 3.0, 3.3))
    assert [s.text for s in segments_of(spoken)] == ["one two", "three"]


def test_closing_quotes_belong_to_the_sentence() -> None:
    spoken = tokens(("▁“", 0.0, 0.1), ("Yes", 0.1, 0.3), ("?”", 0.3, 0.3), ("▁he", 0.4, 0.5))
    assert [s.text for s in segments_of(spoken)] == ["“Yes?”", "he"]


def test_the_confidence_of_a_word_is_the_lowest_of_its_tokens() -> None:
    uncertain = [*tokens(("▁se", 0.0, 0.1)), *tokens(("ven", 0.1, 0.3), confidence=0.25)]
    (segment,) = segments_of(uncertain)
    assert segment.words[0].confidence == 0.25
    assert segment.mean_log_probability == pytest.approx((math.log(0.9) + math.log(0.25)) / 2)


def test_the_log_probability_of_confidence_zero_is_finite() -> None:
    (segment,) = segments_of(tokens(("▁x", 0.0, 0.1), confidence=0.0))
    assert math.isfinite(segment.mean_log_probability)


def test_no_tokens_give_no_segments() -> None:
    assert segments_of([]) == []
