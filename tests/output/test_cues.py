"""Subtitle cues: no word is lost, no cues overlap, and cuts are where a human subtitler would make them."""

import random
from collections.abc import Sequence
from itertools import accumulate, pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.output.cues import Cue, CueRules, shape
from serve_app.output.scripts import width
from serve_app.transcript import Segment, Word

RULES = CueRules()
MS = 0.001
ROUNDING = 1e-9


def word(text: str, start_s: float, end_s: float) -> Word:
    return Word(text, start_s, end_s, confidence=0.9)


def segment(words: Sequence[Word], index: int = 0) -> Segment:
    text = " ".join(word.text for word in words)
    return Segment(index, text, words[0].start_s, words[-1].end_s, tuple(words), ())


def spoken(text: str, word_s: float = 0.3, pause_s: float = 0.0, start_s: float = 0.0) -> list[Word]:
    """The words of a text, each `word_s` long, with `pause_s` between them."""
    step_s = word_s + pause_s
    return [word(part, start_s + i * step_s, start_s + i * step_s + word_s) for i, part in enumerate(text.split())]


def speech(length_s: float, seed: int = 4) -> list[Segment]:
    """Random sentences with commas and pauses at the speed of natural speech, about `length_s` seconds."""
    dice = random.Random(seed)
    segments: list[Segment] = []
    now_s = 0.0
    while now_s < length_s:
        words: list[Word] = []
        count = dice.randint(1, 40)
        for position in range(count):
            text = "".join(dice.choices("abcdefghijklmnopqrstuvwxyzäéß", k=dice.choice((1, 2, 3, 4, 5, 6, 9, 14))))
            if position == 0:
                text = text.title()
            if position == count - 1:
                text += dice.choice((".", "?", "!"))
            elif dice.random() < 0.1:
                text += ","
            said_s = round(0.05 * len(text) + 0.08, 2)
            words.append(word(text, now_s, now_s + said_s))
            now_s += said_s + dice.choice((0.0, 0.0, 0.0, 0.08, 0.16))
        now_s += dice.choice((0.0, 0.3, 0.8, 3.0))
        segments.append(segment(words, len(segments)))
    return segments


def texts(cues: Sequence[Cue]) -> list[str]:
    return [" ".join(cue.lines) for cue in cues]


def characters(parts: Sequence[str]) -> str:
    return "".join("".join(parts).split())


def assert_cues_hold(cues: Sequence[Cue], rules: CueRules) -> None:
    """Assert the invariants of all cues, for any words and any times."""
    for cue in cues:
        assert 1 <= len(cue.lines) <= rules.max_lines
        assert all(line and line == line.strip() for line in cue.lines)
        assert MS - ROUNDING <= cue.end_s - cue.start_s <= rules.max_cue_s + ROUNDING
        assert cue.start_s >= 0
        assert (round(cue.start_s, 3), round(cue.end_s, 3)) == (cue.start_s, cue.end_s)
    for cue, following in pairwise(cues):
        assert cue.end_s <= following.start_s


WORDS = st.text("abcdefgABCDEFGàéßЖΩ.,;:?!—…'\"-&<>{}\\012 ", min_size=1, max_size=14)
LONG_WORDS = st.text("abcdefg", min_size=15, max_size=60)
SPACELESS_WORDS = st.lists(
    st.text("あいうカキク日本語漢字", min_size=1, max_size=6).map(lambda text: text + "、"), min_size=1, max_size=8
).map("".join)
TIMES = st.floats(-5, 100) | st.sampled_from((0.0, 1.0, 1.0004, 59.9996, 3599.9999))
ANY_RULES = st.builds(
    CueRules,
    max_lines=st.integers(1, 4),
    max_line_chars=st.integers(1, 60),
    max_cue_s=st.floats(0.5, 12),
    min_cue_s=st.floats(0.001, 3),
    max_chars_per_s=st.floats(1, 60),
    pause_s=st.floats(0.05, 5),
    gap_s=st.floats(0, 0.4),
)


@given(st.lists(st.lists(st.builds(word, WORDS | LONG_WORDS, TIMES, TIMES), min_size=1, max_size=12), max_size=5), ANY_RULES)
def test_invariants_hold_for_any_words_times_and_rules(groups: list[list[Word]], rules: CueRules) -> None:
    cues = shape([segment(words) for words in groups], rules)
    assert " ".join(texts(cues)).split() == " ".join(word.text for words in groups for word in words).split()
    assert_cues_hold(cues, rules)
    for cue in cues:
        assert all(len(line) <= rules.max_line_chars or " " not in line for line in cue.lines)


@given(st.lists(st.builds(word, SPACELESS_WORDS | WORDS, TIMES, TIMES), min_size=1, max_size=8), ANY_RULES)
def test_invariants_hold_for_scripts_without_spaces(words: list[Word], rules: CueRules) -> None:
    cues = shape([segment(words)], rules)
    assert characters([line for cue in cues for line in cue.lines]) == characters([word.text for word in words])
    assert_cues_hold(cues, rules)


@given(
    st.lists(st.tuples(WORDS.filter(str.strip), st.floats(0.05, 0.8), st.floats(0, 1.5)), min_size=1, max_size=60),
    st.builds(
        CueRules, max_cue_s=st.floats(2, 8), min_cue_s=st.floats(0.3, 1.5), pause_s=st.floats(0.3, 2), gap_s=st.floats(0, 0.2)
    ),
)
def test_invariants_hold_for_natural_word_times(said: list[tuple[str, float, float]], rules: CueRules) -> None:
    words: list[Word] = []
    now_s = 0.0
    for text, said_s, pause_s in said:
        words.append(word("".join(text.split()), now_s, now_s + said_s))
        now_s += said_s + pause_s
    cues = shape([segment(words)], rules)
    assert_cues_hold(cues, rules)
    rest = list(words)
    for index, cue in enumerate(cues):
        count = len(" ".join(cue.lines).split())
        own, rest = rest[:count], rest[count:]
        next_s = cues[index + 1].start_s if index + 1 < len(cues) else float("inf")
        needed_s = max(rules.min_cue_s, width(" ".join(cue.lines)) / rules.max_chars_per_s)
        assert cue.start_s == pytest.approx(own[0].start_s, abs=MS)
        # A cue is shown until its last word ends and until it can be read, as far as the next cue and `max_cue_s` allow.
        room_s = min(next_s, cue.start_s + rules.max_cue_s) - rules.gap_s
        assert cue.end_s >= min(own[-1].end_s, room_s) - 2 * MS
        assert cue.end_s >= min(cue.start_s + needed_s, room_s) - 2 * MS
        assert all(after.start_s - before.end_s < rules.pause_s + 2 * MS for before, after in pairwise(own))
        assert cue.end_s == next_s or next_s - cue.end_s >= rules.gap_s - MS
    assert not rest


def test_ten_minutes_lose_no_word() -> None:
    segments = speech(600)
    cues = shape(segments, RULES)
    assert " ".join(texts(cues)) == " ".join(segment.text for segment in segments)
    assert_cues_hold(cues, RULES)
    assert all(len(line) <= RULES.max_line_chars for cue in cues for line in cue.lines)


def test_most_sentence_ends_are_cue_ends() -> None:
    segments = speech(600)
    sentence_ends = set(accumulate(len(segment.words) for segment in segments))
    cue_ends = set(accumulate(len(text.split()) for text in texts(shape(segments, RULES))))
    assert len(sentence_ends & cue_ends) >= 0.9 * len(sentence_ends)


def test_each_sentence_is_a_cue() -> None:
    words = spoken("It is a fine day today. The sun is out again.")
    assert texts(shape([segment(words)], RULES)) == ["It is a fine day today.", "The sun is out again."]


def test_sentences_too_short_to_read_share_a_cue() -> None:
    assert texts(shape([segment(spoken("Yes. No. Well."))], RULES)) == ["Yes. No. Well."]


def test_a_pause_ends_a_cue() -> None:
    words = [*spoken("and then he"), *spoken("went away", start_s=2.0)]
    assert texts(shape([segment(words)], RULES)) == ["and then he", "went away"]


def test_a_long_sentence_is_cut_at_its_clauses() -> None:
    text = (
        "The committee, which had been meeting since early in the morning, finally agreed that the bridge would be rebuilt; "
        "nobody wanted to say how it would be paid for."
    )
    cues = shape([segment(spoken(text, word_s=0.25))], RULES)
    assert [cue.lines for cue in cues] == [
        ("The committee, which had been", "meeting since early in the morning,"),
        ("finally agreed that the", "bridge would be rebuilt;"),
        ("nobody wanted to say how", "it would be paid for."),
    ]


def test_a_sentence_without_clauses_is_cut_into_cues_of_similar_length() -> None:
    text = "this is a very long sentence that goes on and on without any comma so that it does not fit into one single cue"
    lengths = [len(text) for text in texts(shape([segment(spoken(text, word_s=0.25))], RULES))]
    assert len(lengths) == 2
    assert max(lengths) - min(lengths) <= 10


def test_a_sentence_without_clauses_is_cut_at_a_pause() -> None:
    first = "this is a very long sentence that goes on and on"
    second = "and on without any comma so that it will not ever fit into one cue"
    words = [*spoken(first, word_s=0.3), *spoken(second, word_s=0.3, start_s=11 * 0.3 + 0.8)]
    assert texts(shape([segment(words)], RULES)) == [first, second]


def test_no_cue_exceeds_the_maximum_duration() -> None:
    cues = shape([segment(spoken("one two three four five six seven eight", word_s=1.0))], RULES)
    assert [cue.end_s - cue.start_s for cue in cues] == [4.0, 4.0]


@pytest.mark.parametrize(
    ("text", "lines"),
    [
        ("It fits into one line, so it stays there.", ("It fits into one line, so it stays there.",)),
        ("one two three four five six seven eight nine", ("one two three four five", "six seven eight nine")),
        ("He came home late, and all of the lights were off", ("He came home late,", "and all of the lights were off")),
    ],
)
def test_lines_are_balanced(text: str, lines: tuple[str, ...]) -> None:
    (cue,) = shape([segment(spoken(text, word_s=0.2))], RULES)
    assert cue.lines == lines


def test_a_word_longer_than_a_line_is_not_divided() -> None:
    long = "Rindfleischetikettierungsüberwachungsaufgabenübertragungsgesetz"
    (cue,) = shape([segment(spoken(f"Das {long} gilt", word_s=0.4))], CueRules(max_lines=3))
    assert cue.lines == ("Das", long, "gilt")


@pytest.mark.parametrize(
    ("next_s", "end_s"),
    [(9.0, 1.0), (1.05, 1.05), (0.7, 0.7)],
    ids=["extended into silence", "extended over a short gap", "not extended into the next cue"],
)
def test_a_short_cue_is_extended_to_the_minimum_duration(next_s: float, end_s: float) -> None:
    rules = CueRules(pause_s=0.2)
    cues = shape([segment([word("Hello.", 0.0, 0.3), *spoken("And on it goes like this.", start_s=next_s)])], rules)
    assert (cues[0].lines, cues[0].start_s, cues[0].end_s) == (("Hello.",), 0.0, end_s)


def test_a_short_gap_is_widened_if_closing_it_exceeds_the_maximum_duration() -> None:
    words = [*spoken("It went on and on.", word_s=1.19), *spoken("Then it ended there.", start_s=6.02)]
    cues = shape([segment(words)], RULES)
    assert [(cue.start_s, cue.end_s) for cue in cues] == [(0.0, 5.94), (6.02, 7.22)]


def test_descending_word_times_are_not_a_pause() -> None:
    words = [word("one", 5.0, 5.1), word("two", 1.0, 1.5), word("three", 5.6, 5.9)]
    (cue,) = shape([segment(words)], RULES)
    assert cue == Cue(5.0, 6.0, ("one two three",))


def test_a_cue_of_fast_speech_is_extended_to_the_reading_speed() -> None:
    words = spoken("extraordinarily complicated circumstances", word_s=0.2)
    (cue,) = shape([segment(words)], RULES)
    assert cue.end_s == pytest.approx(41 / RULES.max_chars_per_s)


@pytest.mark.parametrize("word_end_s", [9.7, 10.04])
def test_no_cue_ends_after_the_recording(word_end_s: float) -> None:
    (cue,) = shape([segment([word("Bye.", 9.5, word_end_s)])], RULES, duration_s=10.0)
    assert (cue.start_s, cue.end_s) == (9.5, 10.0)


@pytest.mark.parametrize("text", ["We saw Dr. Smith there.", "We saw J. Smith there.", "Why not... it was him there."])
def test_a_full_stop_inside_a_sentence_is_not_its_end(text: str) -> None:
    words = spoken(text, word_s=0.5)
    assert texts(shape([segment(words)], RULES)) == [text]


JAPANESE = "昨日は東京で大きな会議があり、多くの人が集まりました。今日は天気がいいので、公園に行って写真を撮ろうと思っています。"


def test_japanese_is_cut_at_its_punctuation() -> None:
    cues = shape([segment([word(JAPANESE, 0.0, 14.0)])], RULES)
    assert texts(cues) == [
        "昨日は東京で大きな会議があり、",
        "多くの人が集まりました。",
        "今日は天気がいいので、",
        "公園に行って写真を撮ろうと思っています。",
    ]
    assert cues[-1].end_s == 14.0
    # The cues share the duration of the word in proportion to their characters.
    assert cues[1].start_s == pytest.approx(14.0 * 15 / len(JAPANESE), abs=MS)


def test_a_japanese_character_counts_as_two() -> None:
    lines = [line for cue in shape([segment([word(JAPANESE, 0.0, 14.0)])], CueRules(max_line_chars=12)) for line in cue.lines]
    assert "".join(lines) == JAPANESE
    assert all(len(line) <= 6 for line in lines)


def test_marks_are_not_separated_from_their_character() -> None:
    cues = shape([segment([word("あ「いう」っえか\u3099、ABCおー", 0.0, 2.0)])], CueRules(max_lines=1, max_line_chars=1))
    assert texts(cues) == ["あ", "「い", "う」っ", "え", "か\u3099、", "ABC", "おー"]


def test_a_segment_without_words_is_cut_by_its_text() -> None:
    text = "One sentence here, all by itself. And another one that follows it."
    cues = shape([Segment(0, text, 2.0, 8.0, (), ())], RULES)
    assert texts(cues) == ["One sentence here, all by itself.", "And another one that follows it."]
    assert (cues[0].start_s, cues[-1].end_s) == (2.0, 8.0)


def test_no_words_give_no_cues() -> None:
    assert shape([], RULES) == []
    assert shape([segment([word(" ", 0.0, 1.0)])], RULES) == []
