"""Single cases of the merge at one seam, and what holds for any tokens."""

from dataclasses import dataclass

import pytest
from hypothesis import given
from hypothesis import strategies as st

from serve_app.merging.seams import merge
from serve_app.transcript import Token
from serve_app.window import FRAME_SAMPLES
from testing.simulated_windows import at, is_monotonic, thorough, token


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
