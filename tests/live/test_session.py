"""Live sessions on words at known times: each is final once, in order, and in time."""

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from serve_app.events import Done, Hypothesis, LiveEvent, SegmentFinal, UtteranceFinal
from serve_app.live.endpointing import VadEvent
from serve_app.live.session import LiveSession
from serve_app.live.windows import LiveWindows
from serve_app.transcript import Token
from serve_app.window import SAMPLE_RATE
from testing.live_words import WORD, decoded, final_tokens, said, silence

WINDOWS = LiveWindows(step=6_400, left=8 * SAMPLE_RATE, right=2 * SAMPLE_RATE, max_window=30 * SAMPLE_RATE)


def run_steps(session: LiveSession, words: list[Token], jitter: int = 0) -> list[LiveEvent]:
    """Decode until the session wants more audio."""
    while (window := session.next_window()) is not None:
        session.add(decoded(window, words, jitter))
    return session.take_events()


@dataclass
class Delays:
    """How long after its end each word was final, samples; from the hypotheses."""

    words: list[Token]
    seen: int = 0
    samples: list[int] = field(default_factory=list)
    segments: int = 0

    def note(self, events: list[LiveEvent], position: int) -> None:
        for event in events:
            if isinstance(event, SegmentFinal):
                self.segments += len(event.segment.words)
            if isinstance(event, Hypothesis):
                total = self.segments + len(event.final)
                self.samples += [position - word.end_sample for word in self.words[self.seen : total]]
                self.seen = max(self.seen, total)


def listen(
    words: list[Token], *, block: int = 1_600, every: int = 1, jitter: int = 0, windows: LiveWindows = WINDOWS
) -> tuple[list[Token], Delays]:
    """Final tokens of speech without pauses for the VAD; a step is made at every `every`th block."""
    session, delays, events = LiveSession(windows), Delays(words), list[LiveEvent]()
    session.push(silence(0), [VadEvent(True, 0, 0)])
    total = words[-1].end_sample + 3 * SAMPLE_RATE
    for n, start in enumerate(range(0, total, block)):
        session.push(silence(min(block, total - start)))
        if n % every == 0 and (window := session.next_window()) is not None:
            assert len(window.samples) <= windows.max_window
            session.add(decoded(window, words, jitter))
            new = session.take_events()
            delays.note(new, session.position)
            events += new
    session.finish()
    events += run_steps(session, words, jitter)
    assert isinstance(events[-1], Done)
    return final_tokens(events), delays


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


def test_a_word_is_final_soon_after_its_right_context() -> None:
    _, delays = listen(said([5] * 100))
    assert len(delays.samples) >= 95
    assert max(delays.samples) <= WINDOWS.right + WINDOWS.step + WORD


def test_memory_does_not_grow() -> None:
    session = LiveSession(WINDOWS)
    words = said([5] * 3_000)
    session.push(silence(0), [VadEvent(True, 0, 0)])
    held = 0
    for _ in range(0, words[-1].end_sample, SAMPLE_RATE):
        session.push(silence(SAMPLE_RATE))
        run_steps(session, words)
        held = max(held, session._audio.total - session._audio.first)
    assert held <= WINDOWS.left + WINDOWS.right + WINDOWS.step + 2 * SAMPLE_RATE
    assert len(session._known) < 50


def test_a_backlog_is_caught_up_in_bounded_windows() -> None:
    words = said([5] * 400)
    final, _ = listen(words, every=1_000)
    assert [token.token_id for token in final] == list(range(400))


def test_silence_is_decoded_now_and_then_and_costs_little() -> None:
    session, steps = LiveSession(WINDOWS), 0
    for _ in range(600):
        session.push(silence(SAMPLE_RATE // 10))
        while (window := session.next_window()) is not None:
            steps += 1
            assert len(window.samples) <= 11 * SAMPLE_RATE
            session.add([])
    assert 5 <= steps <= 8


def utterance_of(words: list[Token], pause: int) -> LiveSession:
    """A session in which these words and a pause, samples, were an utterance."""
    session = LiveSession(WINDOWS)
    session.push(silence(words[-1].end_sample + pause))
    session.commit()
    assert final_tokens(run_steps(session, words)) == words
    session.push(silence(SAMPLE_RATE), [VadEvent(True, 0, session.position)])
    return session


@pytest.mark.parametrize(("pause_s", "margin_s"), [(1.0, 0.0), (0.25, 0.1)], ids=["a pause", "no pause"])
def test_words_of_an_utterance_that_ended_are_not_decoded_again(pause_s: float, margin_s: float) -> None:
    words = said([5] * 5)
    window = utterance_of(words, round(pause_s * SAMPLE_RATE)).next_window()
    assert window is not None
    assert window.start_sample > words[-1].end_sample + margin_s * SAMPLE_RATE


def test_an_end_with_nothing_new_ends_at_once() -> None:
    session = LiveSession(WINDOWS)
    session.commit()
    assert session.next_window() is None
    assert session.take_events() == [UtteranceFinal(0.0)]
    assert not session.is_ending


def test_an_utterance_may_end_before_the_newest_audio() -> None:
    words = said([5] * 5)
    session = LiveSession(WINDOWS)
    session.push(silence(words[-1].end_sample + SAMPLE_RATE), [VadEvent(True, 0, 512), VadEvent(False, 0, words[2].end_sample)])
    window = session.next_window()
    assert window is not None
    assert window.end_sample == words[2].end_sample
    session.add(decoded(window, words))
    assert final_tokens(session.take_events()) == words[:3]
    assert not session.is_ending
    session.finish()
    assert final_tokens(run_steps(session, words)) == words[3:]


@pytest.mark.parametrize(("scale", "right_s"), [(0.25, 0.5), (1, 2), (4, 8), (100, 20)])
def test_the_right_context_is_scaled_within_the_longest_window(scale: float, right_s: float) -> None:
    assert WINDOWS.scaled(scale).right == right_s * SAMPLE_RATE


def test_a_word_as_long_as_the_longest_window_ends_it() -> None:
    session = LiveSession(WINDOWS, pauses_end=False)
    session.push(silence(40 * SAMPLE_RATE))
    word = Token("▁long", 0, 0, 29 * SAMPLE_RATE, 0.9)
    assert session.next_window() is not None
    session.add([word])
    (hypothesis,) = session.take_events()
    assert isinstance(hypothesis, Hypothesis)
    assert [word.text for word in hypothesis.final] == ["long"]
    following = session.next_window()
    assert following is not None
    assert following.start_sample > 0


def test_empty_blocks_are_not_kept() -> None:
    session = LiveSession(WINDOWS)
    for _ in range(100):
        session.push(silence(0))
    assert not session._audio._blocks
