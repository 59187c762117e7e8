"""Live windows on words that are known beforehand: each is final once, in order, whatever the steps."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.live import Listener, LiveWindows
from serve_app.transcript import FRAME_SAMPLES, SAMPLE_RATE, Token, Window

LENGTHS = LiveWindows(step=6_400, left=8 * SAMPLE_RATE, right=2 * SAMPLE_RATE, longest=30 * SAMPLE_RATE)
WORD = 4 * FRAME_SAMPLES


def said(gaps: list[int]) -> list[Token]:
    """Words with so many frames of pause before each; the text of every third is the same."""
    words, at = [], 0
    for n, gap in enumerate(gaps):
        at += gap * FRAME_SAMPLES
        words.append(Token(f"▁w{n if n % 3 else 0}", n, at, at + WORD, 0.9))
        at += WORD
    return words


def heard_in(window: Window, words: list[Token], jitter: int = 0) -> list[Token]:
    """What a model hears of them: those that lie wholly in a window, a frame off now and then."""
    shift = FRAME_SAMPLES * (window.index % 2) * jitter
    return [
        word.moved(shift) for word in words if window.start_sample <= word.start_sample and word.end_sample <= window.end_sample
    ]


def listen(
    words: list[Token], *, lengths: LiveWindows = LENGTHS, block: int = 1_600, every: int = 1, jitter: int = 0
) -> tuple[list[Token], list[int]]:
    """Final tokens and, for each, how long after its end it was final; `every` so many blocks the engine is free."""
    listener, final, delays = Listener(lengths), list[Token](), list[int]()

    def step(is_last: bool) -> None:
        while (window := listener.next_window(is_speech=True)) is not None:
            assert len(window.samples) <= lengths.longest
            hearing = listener.add(window, heard_in(window, words, jitter))
            final.extend(hearing.final)
            delays.extend(listener.position - token.end_sample for token in hearing.final)
            if not is_last:
                return

    total = words[-1].end_sample + 3 * SAMPLE_RATE
    for n, start in enumerate(range(0, total, block)):
        listener.push(np.zeros(min(block, total - start), np.int16))
        if n % every == 0:
            step(is_last=False)
    listener.end_utterance(listener.position)
    step(is_last=True)
    assert listener.is_settled
    return final, delays


@given(
    gaps=st.lists(st.integers(0, 40), min_size=1, max_size=60),
    block=st.sampled_from([160, 1_600, 16_000]),
    every=st.sampled_from([1, 7, 60]),
    jitter=st.integers(0, 1),
)
@settings(deadline=None, max_examples=150)
def test_every_word_is_final_once(gaps: list[int], block: int, every: int, jitter: int) -> None:
    words = said(gaps)
    final, _ = listen(words, block=block, every=every, jitter=jitter)
    assert [token.token_id for token in final] == [token.token_id for token in words]


def test_a_word_is_final_soon_after_enough_was_heard_behind_it() -> None:
    _, delays = listen(said([5] * 100))
    assert max(delays) <= LENGTHS.right + LENGTHS.step + WORD


def test_memory_does_not_grow(monkeypatch: pytest.MonkeyPatch) -> None:
    listener = Listener(LENGTHS)
    words = said([5] * 3_000)
    held = 0
    for _ in range(0, words[-1].end_sample, SAMPLE_RATE):
        listener.push(np.zeros(SAMPLE_RATE, np.int16))
        while (window := listener.next_window(is_speech=True)) is not None:
            listener.add(window, heard_in(window, words))
        held = max(held, listener._audio.total - listener._audio.first)
    assert held <= LENGTHS.left + LENGTHS.right + LENGTHS.step + 2 * SAMPLE_RATE
    assert len(listener._known) < 50


def test_what_fell_behind_is_caught_up_in_bounded_windows() -> None:
    words = said([5] * 400)
    final, _ = listen(words, every=1_000)
    assert [token.token_id for token in final] == list(range(400))


def test_silence_is_heard_now_and_then_and_costs_little() -> None:
    listener, steps = Listener(LENGTHS), 0
    for _ in range(600):
        listener.push(np.zeros(SAMPLE_RATE // 10, np.int16))
        while (window := listener.next_window(is_speech=False)) is not None:
            steps += 1
            assert len(window.samples) <= 11 * SAMPLE_RATE
            listener.add(window, [])
    assert 5 <= steps <= 8


def test_after_an_utterance_its_words_are_not_heard_again() -> None:
    words = said([5] * 5)
    listener = Listener(LENGTHS)
    listener.push(np.zeros(words[-1].end_sample + SAMPLE_RATE, np.int16))
    listener.end_utterance(listener.position)
    window = listener.next_window(is_speech=False)
    assert window is not None
    assert listener.add(window, heard_in(window, words)).final == words
    listener.push(np.zeros(SAMPLE_RATE, np.int16))
    following = listener.next_window(is_speech=True)
    assert following is not None
    assert following.start_sample > words[-1].end_sample


def test_an_end_with_nothing_new_settles_at_once() -> None:
    listener = Listener(LENGTHS)
    listener.end_utterance(listener.position)
    assert listener.next_window(is_speech=False) is None
    assert listener.is_settled


def test_an_utterance_may_end_before_the_newest_audio() -> None:
    words = said([5] * 5)
    listener = Listener(LENGTHS)
    listener.push(np.zeros(words[-1].end_sample + SAMPLE_RATE, np.int16))
    listener.end_utterance(words[2].end_sample)
    window = listener.next_window(is_speech=True)
    assert window is not None
    assert listener.add(window, heard_in(window, words)).final == words[:3]
    assert listener.is_settled
    listener.end_utterance(listener.position)
    window = listener.next_window(is_speech=True)
    assert window is not None
    assert listener.add(window, heard_in(window, words)).final == words[3:]


@pytest.mark.parametrize(("factor", "right_s"), [(0.25, 0.5), (1, 2), (4, 8), (100, 20)])
def test_patience_is_how_much_is_heard_behind_a_word(factor: float, right_s: float) -> None:
    assert LENGTHS.with_patience(factor).right == right_s * SAMPLE_RATE


def test_a_word_as_long_as_a_window_is_not_heard_for_ever() -> None:
    listener = Listener(LENGTHS)
    listener.push(np.zeros(40 * SAMPLE_RATE, np.int16))
    word = Token("▁long", 0, 0, 29 * SAMPLE_RATE, 0.9)
    first = listener.next_window(is_speech=True)
    assert first is not None
    assert listener.add(first, [word]).final == [word]
    second = listener.next_window(is_speech=True)
    assert second is not None
    assert second.start_sample > 0


def test_the_tail_of_an_utterances_last_word_is_not_heard_again() -> None:
    words = said([5] * 5)
    listener = Listener(LENGTHS)
    listener.push(np.zeros(words[-1].end_sample + SAMPLE_RATE // 4, np.int16))
    listener.end_utterance(listener.position)
    window = listener.next_window(is_speech=True)
    assert window is not None
    listener.add(window, heard_in(window, words))
    listener.push(np.zeros(SAMPLE_RATE, np.int16))
    following = listener.next_window(is_speech=True)
    assert following is not None
    assert following.start_sample > words[-1].end_sample + SAMPLE_RATE // 10


def test_empty_blocks_are_not_kept() -> None:
    listener = Listener(LENGTHS)
    for _ in range(100):
        listener.push(np.zeros(0, np.int16))
    assert not listener._audio._blocks
