"""Live sessions on words that are known beforehand: each is final once, in order, however the inputs are interleaved."""

from dataclasses import dataclass, field

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from serve_app.events import Done, Hypothesis, LiveEvent, SegmentFinal, SpeechStarted, SpeechStopped, UtteranceFinal
from serve_app.live.endpointing import VadEvent
from serve_app.live.session import LiveSession
from serve_app.live.windows import LiveWindows
from serve_app.transcript import Token, Word
from serve_app.window import FRAME_SAMPLES, SAMPLE_RATE, Window

WINDOWS = LiveWindows(step=6_400, left=8 * SAMPLE_RATE, right=2 * SAMPLE_RATE, max_window=30 * SAMPLE_RATE)
SHORT_WINDOWS = LiveWindows(step=6_400, left=SAMPLE_RATE, right=SAMPLE_RATE // 2, max_window=5 * SAMPLE_RATE)
WORD = 4 * FRAME_SAMPLES


def said(gaps: list[int]) -> list[Token]:
    """Words with so many frames of pause before each; the text of every third is the same, every tenth ends a sentence."""
    words, at = [], 0
    for n, gap in enumerate(gaps):
        at += gap * FRAME_SAMPLES
        words.append(Token(f"▁w{n if n % 3 else 0}" + "." * (n % 10 == 9), n, at, at + WORD, 0.9))
        at += WORD
    return words


def decoded(window: Window, words: list[Token], jitter: int = 0) -> list[Token]:
    """What a model makes of a window: the words that lie wholly in it, a frame off now and then, and of one that the window's end
    cuts off something else."""
    shift = FRAME_SAMPLES * (window.index % 2) * jitter
    tokens = []
    for word in words:
        if word.start_sample < window.start_sample or word.start_sample > window.end_sample - FRAME_SAMPLES:
            continue
        if word.end_sample <= window.end_sample:
            tokens.append(word.moved(shift - window.start_sample))
        else:
            tokens.append(Token("▁cut", 999, word.start_sample - window.start_sample, len(window.samples), 0.3))
    return tokens


def silence(samples: int) -> np.ndarray:
    return np.zeros(samples, np.int16)


def final_tokens(events: list[LiveEvent]) -> list[Token]:
    return [token for event in events if isinstance(event, SegmentFinal) for token in event.segment.tokens]


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


class Conversation:
    """A session that is driven by actions in any order, and what must hold after each of them."""

    def __init__(self, words: list[Token], windows: LiveWindows, *, pauses_end: bool) -> None:
        self.words = words
        self.windows = windows
        self.session = LiveSession(windows, pauses_end=pauses_end)
        self.window: Window | None = None
        self.is_speech = False
        self.ends: list[int] = []  # of utterances that were ended from outside
        self.events: list[LiveEvent] = []
        self.finals: list[Word] = []  # of the segments
        self.known: list[Word] = []  # every word that was ever told to be final
        self.utterance_end_s = 0.0

    def act(self, action: tuple[str, int]) -> None:
        match action:
            case ("push", samples):
                self.session.push(silence(samples))
            case ("vad", ago):
                self.out_of_a_word()
                self.is_speech = not self.is_speech
                position = self.session.position
                if not self.is_speech:
                    self.ends.append(position)
                self.session.push(silence(0), [VadEvent(self.is_speech, max(0, position - ago), position)])
            case ("commit", _):
                self.out_of_a_word()
                self.ends.append(self.session.position)
                self.session.commit()
            case ("step", _) if self.window is None:
                self.window = self.session.next_window()
                assert self.window is None or len(self.window.samples) <= self.windows.max_window
                assert self.session.next_window() is None
            case ("step", _):
                assert self.window is not None
                self.session.add(decoded(self.window, self.words))
                self.window = None
        self.check(self.session.take_events())

    def out_of_a_word(self) -> None:
        """Push audio up to the end of a word that is being said: nothing could save one that is cut in two."""
        position = self.session.position
        end = next((w.end_sample for w in self.words if w.start_sample < position < w.end_sample), position)
        self.session.push(silence(end - position))

    def finish(self) -> None:
        end = max([self.session.position, *(word.end_sample for word in self.words)])
        self.session.push(silence(end - self.session.position))
        self.session.finish()
        while not any(isinstance(event, Done) for event in self.events):
            self.act(("step", 0))

    def check(self, events: list[LiveEvent]) -> None:
        for event in events:
            assert not any(isinstance(earlier, Done) for earlier in self.events[-1:])
            told = list(self.finals)
            match event:
                case SegmentFinal():
                    self.finals += event.segment.words
                    told = list(self.finals)
                    # A word whose first frame is not complete when its utterance ends belongs to the next one.
                    assert event.segment.start_s > self.utterance_end_s - FRAME_SAMPLES / SAMPLE_RATE
                case Hypothesis():
                    told += event.final
                    times = [word.start_s for word in (*told, *event.partial)]
                    assert times == sorted(times)
                case UtteranceFinal():
                    assert event.at_s >= self.utterance_end_s
                    assert all(word.end_s <= event.at_s for word in self.finals)
                    self.utterance_end_s = event.at_s
            shared = min(len(told), len(self.known))
            assert told[:shared] == self.known[:shared], "a final word changed"
            self.known = max(told, self.known, key=len)
            self.events.append(event)


PUSHES = [("push", samples) for samples in (1, 160, 1_600, 6_400, 6_400, 6_400, 12_800, 40_000, 200_000)]
ENDS = [("commit", 0), ("vad", 0), ("vad", 512), ("vad", 12_800)]
ACTIONS = st.sampled_from([*PUSHES, *[("step", 0)] * 12, *ENDS])


@given(
    gaps=st.lists(st.integers(0, 30), min_size=10, max_size=60),
    actions=st.lists(ACTIONS, min_size=60, max_size=200),
    windows=st.sampled_from([WINDOWS, SHORT_WINDOWS]),
    pauses_end=st.booleans(),
)
@settings(deadline=None, max_examples=300, suppress_health_check=[HealthCheck.large_base_example, HealthCheck.data_too_large])
def test_any_interleaving(gaps: list[int], actions: list[tuple[str, int]], windows: LiveWindows, pauses_end: bool) -> None:
    """No word is lost, doubled, or changed once final; times never go back; every end from outside ends an utterance there."""
    words = said(gaps)
    conversation = Conversation(words, windows, pauses_end=pauses_end)
    for action in actions:
        conversation.act(action)
    conversation.finish()
    final = final_tokens(conversation.events)
    assert [token.token_id for token in final] == [token.token_id for token in words]
    assert [(token.start_sample, token.end_sample) for token in final] == [(w.start_sample, w.end_sample) for w in words]
    done = conversation.events[-1]
    assert isinstance(done, Done)
    assert [token for segment in done.segments for token in segment.tokens] == final
    assert done.duration_s == conversation.session.position / SAMPLE_RATE
    ends_s = [event.at_s for event in conversation.events if isinstance(event, UtteranceFinal)]
    assert {end / SAMPLE_RATE for end in conversation.ends} <= set(ends_s)
    speech = [
        isinstance(event, SpeechStarted) for event in conversation.events if isinstance(event, SpeechStarted | SpeechStopped)
    ]
    assert speech == [n % 2 == 0 for n in range(len(speech))]


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
