"""Words to speakers: exactly, with oracle probabilities, and by properties."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from serve_app.output.segments import Segmenter
from serve_app.output.speakers import CHANGE_COST_S, FRAME_S, SpeakerJoin
from serve_app.transcript import Segment, Token
from serve_app.window import FRAME_SAMPLES

Frames = NDArray[np.float16]


def segments_of(*words: tuple[str, int, int]) -> list[Segment]:
    """From the text, first frame and end frame of each word."""
    segmenter = Segmenter()
    tokens = [Token(f"▁{text}", n, start * FRAME_SAMPLES, end * FRAME_SAMPLES, 0.9) for n, (text, start, end) in enumerate(words)]
    return segmenter.add(tokens) + segmenter.finish()


def oracle(length: int, *turns: tuple[int, int, int], speakers: int = 4) -> Frames:
    """Probability 1 of the speaker of each turn: column, first frame, end frame."""
    frames = np.zeros((length, speakers), np.float16)
    for column, start, end in turns:
        frames[start:end, column] = 1
    return frames


def whole(segments: Sequence[Segment], frames: Frames, known: dict[int, str] | None = None) -> list[Segment]:
    join = SpeakerJoin(known or {})
    return join.add_frames(frames) + join.add_segments(segments) + join.finish_frames()


def spoken(segments: Sequence[Segment]) -> list[tuple[str | None, str]]:
    return [(segment.speaker, segment.text) for segment in segments]


def test_every_sentence_has_its_speaker() -> None:
    segments = segments_of(("One", 2, 6), ("two.", 7, 12), ("Three.", 20, 26), ("Four.", 30, 36))
    frames = oracle(40, (2, 0, 14), (0, 18, 28), (2, 28, 40))
    found = whole(segments, frames)
    assert spoken(found) == [("A", "One two."), ("B", "Three."), ("A", "Four.")]
    assert [segment.index for segment in found] == [0, 1, 2]


def test_known_speakers_keep_their_names_and_the_others_get_free_letters() -> None:
    segments = segments_of(("One.", 2, 6), ("Two.", 12, 16), ("Three.", 22, 26))
    frames = oracle(30, (1, 0, 9), (3, 9, 19), (0, 19, 30))
    assert spoken(whole(segments, frames, {3: "A"})) == [("B", "One."), ("A", "Two."), ("C", "Three.")]


def test_a_change_within_a_sentence_splits_it_at_the_word() -> None:
    segments = segments_of(("well", 0, 6), ("so", 7, 12), ("no", 13, 18), ("never.", 19, 26))
    (found, also) = whole(segments, oracle(30, (0, 0, 12), (1, 12, 30)))
    assert spoken([found, also]) == [("A", "well so"), ("B", "no never.")]
    assert (found.start_s, found.end_s, also.start_s, also.end_s) == pytest.approx((0, 0.96, 1.04, 2.08))
    assert [token.piece for token in also.tokens] == ["▁no", "▁never."]
    assert [word.text for word in found.words] == ["well", "so"]


@pytest.mark.parametrize(("start", "end"), [(12, 16), (13, 17), (14, 15)])
def test_one_word_in_the_middle_does_not_flicker(start: int, end: int) -> None:
    segments = segments_of(("well", 0, 6), ("so", 7, 12), ("hm", start, end), ("I", 18, 22), ("think.", 23, 30))
    assert spoken(whole(segments, oracle(30, (0, 0, start), (1, start - 1, end), (0, end, 30)))) == [("A", segments[0].text)]


def test_some_words_in_the_middle_are_a_turn() -> None:
    segments = segments_of(("well", 0, 6), ("so", 7, 12), ("no", 13, 18), ("no", 19, 24), ("I", 25, 30), ("think.", 31, 38))
    found = whole(segments, oracle(38, (0, 0, 12), (1, 12, 24), (0, 24, 38)))
    assert spoken(found) == [("A", "well so"), ("B", "no no"), ("A", "I think.")]


@pytest.mark.parametrize(("frames", "is_turn"), [(2, False), (math.ceil(CHANGE_COST_S / FRAME_S), True)])
def test_a_last_word_is_a_turn_where_it_is_long_enough(frames: int, is_turn: bool) -> None:
    segments = segments_of(("well", 0, 6), ("so", 7, 12), ("no.", 13, 13 + frames))
    found = whole(segments, oracle(20, (0, 0, 12), (1, 12, 20)))
    assert spoken(found) == ([("A", "well so"), ("B", "no.")] if is_turn else [("A", "well so no.")])


def test_uncertain_words_follow_their_sentence() -> None:
    segments = segments_of(("one", 1, 6), ("two", 7, 12), ("three", 13, 18), ("four.", 19, 24))
    frames = oracle(24, (1, 0, 24)).astype(np.float32)
    frames[12:18] = (0.5, 0.45, 0, 0)
    assert spoken(whole(segments, frames.astype(np.float16))) == [("A", "one two three four.")]


def test_a_segment_has_the_speaker_of_most_of_its_time() -> None:
    """Where both speak at once, the probabilities decide."""
    segments = segments_of(("one", 1, 6), ("two.", 7, 12))
    frames = oracle(12, (0, 0, 12))
    frames[:, 2] = 0.9
    assert spoken(whole(segments, frames)) == [("A", "one two.")]
    frames[3:12, 2], frames[3:12, 0] = 1, 0.8
    join = SpeakerJoin({0: "first", 2: "third"})
    join.add_frames(frames)
    assert spoken(join.add_segments(segments)) == [("third", "one two.")]


def test_words_of_which_nothing_is_known_have_the_speaker_before() -> None:
    segments = segments_of(("One.", 2, 6), ("Two.", 40, 46), ("Three.", 50, 56))
    assert spoken(whole(segments, oracle(60, (3, 0, 10), (1, 49, 58)))) == [("A", "One."), ("A", "Two."), ("B", "Three.")]
    assert spoken(whole(segments, oracle(0))) == [("A", "One."), ("A", "Two."), ("A", "Three.")]


def test_a_word_beyond_the_last_frame_has_that_one() -> None:
    assert spoken(whole(segments_of(("One.", 2, 6), ("Two.", 8, 14)), oracle(8, (0, 0, 5), (1, 5, 8)))) == [
        ("A", "One."),
        ("B", "Two."),
    ]


def test_a_segment_comes_once_the_diarizer_has_passed_its_end() -> None:
    one, two = segments_of(("One.", 2, 6), ("Two.", 8, 14))
    join = SpeakerJoin({})
    frames = oracle(14, (0, 0, 7), (1, 7, 14))
    assert join.add_segments([one, two]) == []
    assert join.add_frames(frames[:5]) == []
    assert spoken(join.add_frames(frames[5:6])) == [("A", "One.")]
    assert join.add_frames(frames[6:13]) == []
    assert spoken(join.add_frames(frames[13:])) == [("B", "Two.")]


@pytest.mark.parametrize("before", [0, 1, 2, 3])
def test_after_a_diarizer_was_given_up_there_are_no_speakers(before: int) -> None:
    """Whatever had come until then."""
    segments = segments_of(("One.", 2, 6), ("Two.", 8, 14), ("Three.", 20, 24))
    join = SpeakerJoin({})
    found = join.add_segments(segments[:before]) + join.add_frames(oracle(7, (0, 0, 7))) + join.give_up()
    found += join.add_segments(segments[before:])
    assert spoken(found) == [("A", "One."), (None, "Two."), (None, "Three.")]
    assert [segment.index for segment in found] == [0, 1, 2]


def test_more_people_than_can_be_told_apart() -> None:
    words = [(f"w{n}.", 10 * n + 1, 10 * n + 8) for n in range(10)]
    frames = oracle(100, *((n % 2, 10 * n, 10 * n + 10) for n in range(10)), speakers=2)
    join = SpeakerJoin({})
    join.add_frames(frames)
    join.add_segments(segments_of(*words))
    assert not join.is_crowded
    frames[40:70] = 0.3
    for known, is_crowded in (({}, True), ({0: "Ann", 1: "Bo"}, True)):
        join = SpeakerJoin(known)
        join.add_frames(frames)
        join.add_segments(segments_of(*words))
        assert join.is_crowded == is_crowded
    frames[:, 1] = 0
    join = SpeakerJoin({0: "Ann", 1: "Bo"})
    join.add_frames(frames)
    join.add_segments(segments_of(*words))
    assert not join.is_crowded, "one of the known people is silent"


def test_frames_that_no_word_needs_any_more_are_dropped() -> None:
    join = SpeakerJoin({})
    for second in range(1000):
        start = second * 12
        join.add_frames(oracle(12, (0, 0, 12)))
        join.add_segments(segments_of(("One.", start + 2, start + 8)))
    assert join._frames is not None
    assert len(join._frames) < 50


@st.composite
def recordings(draw: st.DrawFn) -> tuple[list[Segment], Frames]:
    position, words = 0, []
    for _ in range(draw(st.integers(1, 30))):
        position += draw(st.integers(0, 12))
        end = position + draw(st.integers(0, 8))
        words.append((draw(st.sampled_from(["a", "b.", "c"])), position, end))
    length = max(0, position + draw(st.integers(-20, 20)))
    values = draw(st.lists(st.sampled_from([0.0, 0.1, 0.4, 0.6, 0.9, 1.0]), min_size=20, max_size=20))
    runs = draw(st.lists(st.integers(1, 9), min_size=1, max_size=40))
    rows = [[values[(5 * n + column) % 20] for column in range(3)] for n, run in enumerate(runs) for _ in range(run)]
    frames = np.array((rows * (length // len(rows) + 1))[:length], np.float16).reshape(length, 3)
    return segments_of(*words), frames


@given(recordings())
def test_no_word_is_lost_or_moved_and_each_has_one_speaker(recording: tuple[list[Segment], Frames]) -> None:
    segments, frames = recording
    found = whole(segments, frames)
    assert [word for segment in found for word in segment.words] == [word for segment in segments for word in segment.words]
    assert [token for segment in found for token in segment.tokens] == [t for segment in segments for t in segment.tokens]
    assert " ".join(segment.text for segment in found) == " ".join(segment.text for segment in segments)
    assert [segment.index for segment in found] == list(range(len(found)))
    names = list(dict.fromkeys(segment.speaker for segment in found))
    assert names == ["A", "B", "C"][: len(names)]
    for segment in found:
        assert (segment.start_s, segment.end_s) == (segment.words[0].start_s, segment.words[-1].end_s)


@given(recordings(), st.data())
def test_a_stream_gives_the_same_as_the_whole(recording: tuple[list[Segment], Frames], data: st.DataObject) -> None:
    segments, frames = recording
    join, found, fed, sent = SpeakerJoin({}), list[Segment](), 0, 0
    while fed < len(frames) or sent < len(segments):
        if data.draw(st.booleans()) and fed < len(frames):
            count = data.draw(st.integers(1, len(frames) - fed))
            found += join.add_frames(frames[fed : fed + count])
            fed += count
            if fed == len(frames):
                found += join.finish_frames()
        elif sent < len(segments):
            found += join.add_segments([segments[sent]])
            sent += 1
    assert found + join.finish_frames() == whole(segments, frames)


def test_a_stranger_does_not_get_the_name_of_somebody_who_was_not_found() -> None:
    segments = segments_of(("One.", 2, 6), ("Two.", 20, 26))
    join = SpeakerJoin({0: "A"}, taken=["A", "B"])
    found = join.add_frames(oracle(30, (0, 0, 14), (1, 18, 28))) + join.add_segments(segments) + join.finish_frames()
    assert spoken(found) == [("A", "One."), ("C", "Two.")]
